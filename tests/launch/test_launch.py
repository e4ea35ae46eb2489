"""The launch files: accelerate takes them, the README's commands are real, the SLURM script stops and resumes."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import start

from mmrep.config.checks import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
CONFIGS = sorted(LAUNCH.glob("*.yaml"))
SCRIPT, ARRAY = LAUNCH / "slurm.sh", LAUNCH / "study_array.sh"
SUFFIXES = (".yaml", ".py", ".sh")


def commands() -> list[list[str]]:
    """The README's commands as lists of words."""
    blocks = (LAUNCH / "README.md").read_text(encoding="utf-8").split("```bash\n")[1:]
    text = "".join(block.split("```")[0] for block in blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def parsed(words: list[str]) -> Any:
    """The words of an `accelerate launch` command, read by accelerate itself."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    assert words[:2] == ["accelerate", "launch"]
    args = launch_command_parser().parse_args(words[2:])
    return _validate_launch_command(args)[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_takes_the_config(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.mixed_precision == "no", "the run's own config decides"
    expected = {"one_gpu": ("NO", 1, 1), "one_node": ("MULTI_GPU", 1, 8), "several_nodes": ("MULTI_GPU", 2, 16)}
    assert (config.distributed_type.value, config.num_machines, config.num_processes) == expected[path.stem]


def test_readme_names_every_file() -> None:
    text = (LAUNCH / "README.md").read_text(encoding="utf-8")
    for path in LAUNCH.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_of_the_readme(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert words[0] == "accelerate" or {"launch/slurm.sh", "launch/study_array.sh"} & set(words)
    if words[0] == "accelerate":
        args = parsed(words)
        if args.module:
            assert (args.training_script, args.training_script_args[0]) == ("mmrep", "eval")
        else:
            assert args.training_script == "train.py"
            assert {"--config", "--output_dir"} <= set(args.training_script_args)
        assert args.mixed_precision == "no"
        assert args.num_machines == 1 or args.main_process_ip


def shown_in_the_readme() -> list[list[str]]:
    """The commands of the main README that start with accelerate."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line.partition("#")[0]) for line in lines if line.startswith("accelerate launch")]


def say_who_is_here(rank: int) -> None:
    """Join the other processes, as every verb does, and say what is found."""
    from accelerate import PartialState

    from mmrep import distributed

    device, state = distributed.start(), PartialState()
    counts = (distributed.world_size(), state.num_processes)
    sys.stderr.write(f"{(distributed.rank(), *counts, device.type)}\n")
    distributed.barrier()


def environment_of(words: list[str]) -> tuple[int, dict[str, str]]:
    """The processes that an `accelerate launch` command starts, and what it puts into their environment."""
    from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

    args = parsed(words)
    count = max(args.num_processes, 1)  # a process a GPU, and there are none
    found = prepare_multi_gpu_env(args) if count > 1 else prepare_simple_launcher_cmd_env(args)[1]
    keep = ("ACCELERATE_", "OMP_", "FSDP_")
    return count, {key: value for key, value in found.items() if key.startswith(keep)}


def test_commands_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch, Accelerate and the launcher agree on the processes (two stand for more), or a loss would be wrong."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen = {}
    for words in (*commands(), *shown_in_the_readme()):
        if words[0] == "accelerate":
            count, environment = environment_of(words)
            seen[min(count, 2), tuple(sorted(environment.items()))] = words
    assert {world for world, _ in seen} == {1, 2}
    for number, ((world, environment), words) in enumerate(seen.items()):
        started = start(["--version"], tmp_path / str(number), say_who_is_here, world, dict(environment))
        assert started.end() == [0] * world, (words, started.said())
        said = [file.read_text() for file in started.errors]
        assert all(repr((rank, world, world, "cpu")) in said[rank] for rank in range(world)), said


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "asks for DeepSpeed, which mmrep does not use"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "asks for gradient accumulation over 4 steps"),
        (
            {"WORLD_SIZE": "2"},
            r"the launcher says 2 processes \(WORLD_SIZE\), Accelerate 1, torch.distributed 1: start",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, r"the launcher says 2 processes \(OMPI_COMM_WORLD_SIZE\), Accelerate 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected the number of processes, got 'two'"),
    ],
)
def test_what_a_launcher_asks_for_and_is_not_done(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate import PartialState

    from mmrep import distributed

    PartialState()  # of one process, whatever the environment says afterwards
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("mmrep.agreement.end_with_launcher", lambda launched: None)
    with pytest.raises(ConfigError, match=message):
        distributed.start()


def test_the_launchers_precision_is_not_used_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mmrep import distributed

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    distributed.check_precision("bf16")
    assert not caplog.text
    distributed.check_precision("fp32")
    distributed.check_launcher()
    assert "mixed_precision bf16 is not used: --training.precision decides, and is fp32" in caplog.text
    assert "dynamo backend INDUCTOR is not used: --training.compile true" in caplog.text


@pytest.mark.parametrize("file", sorted({word for words in commands() for word in words if word.endswith(SUFFIXES)}))
def test_file_in_a_command_exists(file: str) -> None:
    assert (ROOT / file).is_file()


def test_comments_show_commands_of_the_readme() -> None:
    shown = [
        line[1:].split()
        for path in CONFIGS
        for line in path.read_text().splitlines()
        if line.startswith("#   accelerate")
    ]
    assert len(shown) == 2
    assert all(words in commands() for words in shown)


@pytest.mark.parametrize("script", [SCRIPT, ARRAY], ids=lambda path: path.name)
def test_script_is_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    assert script.stat().st_mode & stat.S_IXUSR
    lines = script.read_text().splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options and max(options) < first_command, "sbatch stops reading options at the first command"


class Cluster:
    """A folder of stand-ins for SLURM's commands; each writes down how it was called."""

    def __init__(self, folder: Path, work: str, state: str = "RUNNING") -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        (folder / "launch").mkdir()
        (folder / "train.py").touch()
        self.command("srun", 'while [ "${1#-}" != "$1" ]; do shift; done\nSLURM_NODEID=1 exec "$@"')
        self.command(
            "scontrol",
            f'case "$1 $2" in\n"show hostnames") printf "n7\\nn8\\n";;\n"show job") echo JobState={state};;\nesac',
        )
        self.command("scancel", f"kill -TERM $(cat {folder}/worker)")
        for worker in ("accelerate", "python", "mmrep"):
            self.command(worker, f"echo $$ > {folder}/worker\n{work}")

    def command(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.log}\n{body}\n')
        path.chmod(0o755)

    def start(self, *args: str, nodes: int = 2, gpus: int = 8, script: Path = SCRIPT) -> subprocess.Popen[str]:
        slurm = {"JOB_ID": "20042", "JOB_NUM_NODES": nodes, "JOB_NODELIST": "n[7-8]", "GPUS_ON_NODE": gpus}
        env = {f"SLURM_{key}": str(value) for key, value in slurm.items()}
        env["PATH"] = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        pipe = subprocess.PIPE
        return subprocess.Popen(["bash", script, *args], env=env, cwd=self.folder, stdout=pipe, stderr=pipe, text=True)

    def signalled(self, *args: str, **size: Any) -> int:
        """Exit status of a job that gets SLURM's warning once its work has begun."""
        job = self.start(*args, **size)
        deadline = time.monotonic() + 20
        while not (self.folder / "ready").exists():
            assert time.monotonic() < deadline and job.poll() is None, job.communicate()
            time.sleep(0.02)
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=20)
        return job.returncode

    def calls(self, name: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(f"{name} ")]

    def requeued(self) -> bool:
        return self.calls("scontrol")[-1] == "scontrol requeue 20042"


ARGS = ("configs/x.yaml", "runs/x y", "--optim.lr", "1e-3")
UNTIL_TERM = "trap 'sleep 0.3; exit {}' TERM\ntouch ready\nfor _ in {{1..400}}; do sleep 0.05; done"


def test_slurm_job_that_finishes(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "exit 0")
    job = cluster.start(*ARGS)
    assert job.communicate(timeout=20) == ("", "") and job.returncode == 0
    assert not cluster.requeued()
    (tmp_path / "launch" / "several_nodes.yaml").write_text((LAUNCH / "several_nodes.yaml").read_text())
    words = cluster.calls("accelerate")[0].replace("runs/x y", "runs/x_y").split()
    words[words.index("launch/several_nodes.yaml")] = str(LAUNCH / "several_nodes.yaml")
    args = parsed(words)
    assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, 1)
    assert (args.main_process_ip, args.main_process_port) == ("n7", 10042)
    expected = "--config configs/x.yaml --output_dir runs/x_y --resume auto --optim.lr 1e-3"
    assert (args.training_script, args.training_script_args) == ("train.py", expected.split())


@pytest.mark.parametrize("gpus", [1, 8])
def test_slurm_job_that_fails_stays_away(tmp_path: Path, gpus: int) -> None:
    cluster = Cluster(tmp_path, "exit 1")
    job = cluster.start(*ARGS, nodes=1, gpus=gpus)
    job.communicate(timeout=20)
    assert job.returncode == 1
    assert not any("requeue" in call for call in cluster.log.read_text().splitlines())


@pytest.mark.parametrize(("gpus", "status"), [(8, 1), (1, 75)])
def test_slurm_job_that_is_stopped_comes_back(tmp_path: Path, gpus: int, status: int) -> None:
    cluster = Cluster(tmp_path, UNTIL_TERM.format(status))
    assert cluster.signalled(*ARGS, nodes=1, gpus=gpus) == status
    assert cluster.calls("scancel") == ["scancel --signal=TERM 20042.0"]
    assert cluster.requeued()
    assert bool(cluster.calls("accelerate")) is (gpus > 1)


def test_slurm_job_that_ends_while_it_is_stopped_stays_away(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, UNTIL_TERM.format(0))
    assert cluster.signalled(*ARGS) == 0
    assert not cluster.requeued()


def test_slurm_job_that_is_cancelled_stays_away(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, UNTIL_TERM.format(1), state="CANCELLED")
    assert cluster.signalled(*ARGS) == 1
    assert not cluster.requeued()


def test_slurm_script_says_what_it_needs(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "exit 0")
    for args, gpus, says in (((), 8, "usage: sbatch"), (ARGS, 0, "no GPU in this job")):
        job = cluster.start(*args, gpus=gpus)
        assert says in job.communicate(timeout=20)[1] and job.returncode == 2
    (tmp_path / "train.py").unlink()
    job = cluster.start(*ARGS)
    assert "submit from the repository's root" in job.communicate(timeout=20)[1] and job.returncode == 2


def test_array_task_takes_part_in_the_study(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "exit 0")
    job = cluster.start(*ARGS, script=ARRAY)
    assert job.communicate(timeout=20) == ("", "") and job.returncode == 0
    said = cluster.calls("mmrep")
    assert said == ["mmrep compare --config configs/x.yaml --output_dir runs/x y --optim.lr 1e-3 --join"]
    assert not cluster.calls("scontrol")


@pytest.mark.parametrize(
    ("state", "status", "requeued"), [("RUNNING", 75, True), ("CANCELLED", 75, False), ("RUNNING", 1, False)]
)
def test_array_task_that_is_stopped(tmp_path: Path, state: str, status: int, requeued: bool) -> None:
    cluster = Cluster(tmp_path, UNTIL_TERM.format(status), state=state)
    assert cluster.signalled(*ARGS, script=ARRAY) == status
    assert any(call.startswith("scontrol requeue") for call in cluster.calls("scontrol")) == requeued


def test_array_task_says_what_it_needs(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, "exit 0")
    job = cluster.start(script=ARRAY)
    assert "usage: sbatch --array" in job.communicate(timeout=20)[1] and job.returncode == 2
