#!/bin/bash
# Runs a study as a SLURM job array, one GPU a task. Each task takes runs that no other one is training until there are
# none left; a task that reaches its time limit stops with a checkpoint and is queued again. From the repository's root:
#   sbatch --array 0-7 launch/study_array.sh configs/studies/cifar10_ggem.yaml studies/cifar10_ggem [--training.steps 600 ...]
# The report is in the study's folder; `mmrep report studies/cifar10_ggem` makes it again at any time.
#SBATCH --job-name=mmrep-study
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
set -u

if [ $# -lt 2 ]; then
  echo "usage: sbatch --array 0-N [sbatch's options] launch/study_array.sh CONFIG OUTPUT_DIR [--option value ...]" >&2
  exit 2
fi
if [ ! -f train.py ]; then
  echo "study_array.sh: no train.py in $PWD; submit from the repository's root" >&2
  exit 2
fi
config=$1
output=$2
shift 2

stopped=0
worker=
trap 'stopped=1; [ -z "$worker" ] || kill -TERM "$worker"' TERM
mmrep compare --config "$config" --output_dir "$output" "$@" --join &
worker=$!

# A trapped signal ends `wait` early: wait again until the worker has ended.
status=0
wait "$worker" || status=$?
while kill -0 "$worker" 2>/dev/null; do
  status=0
  wait "$worker" || status=$?
done

# 75: stopped by a signal and resumable. A job that its owner cancelled is in another state and must not come back.
if [ "$status" -eq 75 ] && [ "$stopped" -eq 1 ] && scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
  echo "study_array.sh: stopped in time; job $SLURM_JOB_ID is queued again and goes on with the study"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
