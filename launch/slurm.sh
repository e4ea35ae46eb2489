#!/bin/bash
# Trains under SLURM on one GPU, one node or several; stops before the time limit with a checkpoint, queues itself again
# and goes on from there. From the repository's root:
#   sbatch --nodes 2 launch/slurm.sh configs/vit_b16.yaml runs/vit_b16 [--optim.lr 1e-3 ...]
# Time, partition, account and the like: here, or on sbatch's command line, which wins.
#SBATCH --job-name=mmrep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -u

if [ $# -lt 2 ]; then
  echo "usage: sbatch [sbatch's options] launch/slurm.sh CONFIG OUTPUT_DIR [--option value ...]" >&2
  exit 2
fi
if [ ! -f train.py ]; then
  echo "slurm.sh: no train.py in $PWD; submit from the repository's root" >&2
  exit 2
fi
config=$1
output=$2
shift 2
run=(train.py --config "$config" --output_dir "$output" --resume auto "$@")

nodes=$SLURM_JOB_NUM_NODES
gpus=${SLURM_GPUS_ON_NODE:-0}
if [ "$gpus" -lt 1 ]; then
  echo "slurm.sh: no GPU in this job; ask for some with --gpus-per-node" >&2
  exit 2
fi
# srun does not take the job's CPUs a task over by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# The launcher kills workers 30 s after it has passed a signal on; a large checkpoint may take longer to write.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240

# The signal goes to the step and not to srun, which would end the step by force.
stopped=0
trap 'stopped=1; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM

if [ $((nodes * gpus)) -eq 1 ]; then
  # accelerate's launcher of a single process dies of the signal and leaves the process to be killed.
  srun python "${run[@]}" &
else
  address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  # One launcher a node; a node's own rank is known there only.
  srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --machine_rank "$SLURM_NODEID" "$@"' launcher \
    --config_file launch/several_nodes.yaml --num_machines "$nodes" --num_processes $((nodes * gpus)) \
    --main_process_ip "$address" --main_process_port $((10000 + SLURM_JOB_ID % 20000)) "${run[@]}" &
fi
step=$!

# A trapped signal ends `wait` early: wait again until the step is over.
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do
  status=0
  wait "$step" || status=$?
done

# 75: stopped by a signal and resumable; accelerate turns it into 1, hence the flag. After scancel of the whole job the
# state is another one, and a job that its owner cancelled must not come back.
if { [ "$status" -eq 75 ] || { [ "$stopped" -eq 1 ] && [ "$status" -ne 0 ]; }; } &&
  scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  echo "slurm.sh: stopped in time; job $SLURM_JOB_ID is queued again and resumes from its last checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
