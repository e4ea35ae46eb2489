"""Two processes end in one way: with one line, one status and within seconds, whatever goes wrong on one of them."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import colour_samples, write_tar
from processes import Started, start

from mmrep.config.tree import TrainConfig
from mmrep.training.checkpoint import list_checkpoints
from mmrep.training.resume import plain

Recipe = Callable[..., TrainConfig]
MANY = 20_000


@pytest.fixture
def begin(recipe: Recipe, tmp_path: Path) -> Callable[..., Started]:
    """`begin(before, **parts)`: two processes that train a recipe by the command line."""

    def begin(before: Callable[[int], None] | None = None, resume: bool = False, **parts: object) -> Started:
        training = {"steps": 8, "checkpoint_steps": 0} | dict(parts.pop("training", {}))  # type: ignore[call-overload]  # any fields
        config = recipe(training=training, evaluation={"sets": []}, data={"workers": 0}, **parts)
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(plain(config.to_dict())))
        options = ["--resume", "auto"] if resume else []
        return start(["train", "--config", str(file), *options], tmp_path / "said", before)

    return begin


def told(started: Started) -> str:
    """What the user reads besides progress: neither tracebacks nor more than one error."""
    said = started.said()
    assert "Traceback" not in said and "gloo" not in said, said
    lines = [line for line in said.splitlines() if line.startswith(("mmrep train: ", "error: "))]
    assert len(lines) == 1, said
    return lines[0]


def until_training(run: Path) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").is_file() or (run / "metrics.jsonl").read_text().count("\n") < 5:
        assert time.monotonic() < deadline, "the run does not train"
        time.sleep(0.02)


def test_a_bad_sample_of_one_process_is_named(begin: Callable[..., Started], tmp_path: Path) -> None:
    samples = colour_samples(48)
    samples[20] = ("bad", samples[20][1] | {"png": samples[20][1]["png"][:50]})
    shard = write_tar(tmp_path / "shards" / "0.tar", samples)
    started = begin(source={"shards": str(shard)}, training={"steps": 40})
    assert started.end() == [1, 1]
    assert "0.tar: sample 'bad', member 'png'" in told(started)


def fill_the_disk(rank: int) -> None:
    """Let the first process find the disk full when it writes a checkpoint."""
    from mmrep.training import checkpoint

    def save(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if rank == 0:
        checkpoint.save_file = save  # type: ignore[assignment]  # a failing disk


def test_a_full_disk_of_the_first_process_ends_both(begin: Callable[..., Started]) -> None:
    started = begin(fill_the_disk, training={"checkpoint_steps": 3})
    assert started.end() == [1, 1]
    assert "step_00000003: can't be written: No space left on device; free some space" in told(started)


def test_a_loss_that_is_not_finite_is_said_once(begin: Callable[..., Started]) -> None:
    started = begin(optim={"lr": 1e30, "warmup": 0, "clip_norm": None})
    assert started.end() == [1, 1]
    assert "error: the loss is nan at step 2: lower optim.lr" in told(started)


def test_a_wrong_option_that_only_the_first_process_finds(begin: Callable[..., Started], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "study.yaml").touch()
    started = begin(look_late)
    assert started.end() == [2, 2]
    assert "holds a study, not a run" in told(started)


def look_late(rank: int) -> None:
    """Let nobody look at the folder before the processes have met."""
    from mmrep.cli import train

    train.check_output = lambda config: None


def test_sigterm_to_one_process_stops_both_after_one_step(begin: Callable[..., Started], tmp_path: Path) -> None:
    run = tmp_path / "run"
    started = begin(training={"steps": MANY})
    until_training(run)
    os.kill(started.processes[1].pid or 0, signal.SIGTERM)
    assert started.end() == [75, 75]
    (place,) = list_checkpoints(run)
    done = int(place.name.removeprefix("step_"))
    assert f"stopped by SIGTERM after step {done}; continue with:" in told(started)
    assert 5 <= done < MANY
    # It goes on, and a process that is killed is missed by the other one.
    lines = (run / "metrics.jsonl").read_text().count("\n")
    assert lines == done
    again = begin(resume=True, training={"steps": MANY})
    while (run / "metrics.jsonl").read_text().count("\n") < lines + 5:
        time.sleep(0.02)
    os.kill(again.processes[1].pid or 0, signal.SIGKILL)
    while again.processes[0].is_alive():  # a launcher ends those that are left
        os.kill(again.processes[0].pid or 0, signal.SIGTERM)
        time.sleep(0.002)
    assert again.end() == [1, -signal.SIGKILL]
    line = told(again)
    assert line.startswith("error: rank 1 is gone: it was killed") and line.endswith("--resume auto")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def save_slowly(rank: int) -> None:
    """Let a checkpoint take for ever, so that the second Ctrl-C comes while it is written."""
    from mmrep.training.build import Run

    def save(self: Run, step: int) -> None:
        (self.folder / f"saving_{rank}").touch()
        time.sleep(600)

    Run.save = save  # type: ignore[method-assign]  # waits to be killed


def test_ctrl_c_twice_ends_at_once(begin: Callable[..., Started], tmp_path: Path) -> None:
    started = begin(save_slowly, training={"steps": MANY})
    until_training(tmp_path / "run")
    for process in started.processes:
        os.kill(process.pid or 0, signal.SIGINT)
    while len(list((tmp_path / "run").glob("saving_*"))) < 2:
        time.sleep(0.02)
    for process in started.processes:
        os.kill(process.pid or 0, signal.SIGINT)
    assert started.end() == [1, 1]
    assert told(started) == "mmrep train: error: interrupted"


def test_a_study_of_two_processes_is_looked_into_by_both(recipe: Recipe, tmp_path: Path, colour_set: Path) -> None:
    config = recipe("study", training={"steps": 1}, optim={"warmup": 0}, data={"workers": 0})
    content = plain(config.to_dict())
    content["study"] = {"pools": ["avg"], "diagnostics": {"images": 8, "accuracy_images": 8, "pictures": 1}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    started = start(["compare", "--config", str(file)], tmp_path / "said")
    assert started.end() == [0, 0], started.said()
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    found = results["diagnostics"]["runs"]["avg-0"]
    # Accuracy over sizes is measured by an evaluation, which gathers the embeddings of all processes.
    assert len(found["resolution"]) == 4 and not any("resolution" in name for name in found["left_out"])


def test_children_of_a_launcher_end_with_it(tmp_path: Path) -> None:
    child = (
        "import time; from mmrep import agreement; agreement.end_with_launcher(True); "
        f"open({str(tmp_path / 'ready')!r}, 'w').close(); time.sleep(600)"
    )
    launcher = (
        f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.DEVNULL); "
        "print(c.pid, flush=True); c.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    handle = os.pidfd_open(pid)
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    process.kill()
    process.communicate()
    ended = bool(select.select([handle], [], [], 30)[0])
    os.close(handle)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    assert ended, "the child trains on"
