"""`kill -9` in the middle of a run, and a disk that is full while a checkpoint is written."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from mmrep.config.tree import TrainConfig
from mmrep.training.build import plain
from mmrep.training.checkpoint import CheckpointError, list_checkpoints, save_checkpoint
from mmrep.training.trainer import train

ROOT = Path(__file__).parents[2]


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_kill_9_and_resume_give_identical_losses(recipe: Callable[..., TrainConfig], tmp_path: Path) -> None:
    whole = recipe("whole", training={"steps": 24, "checkpoint_steps": 5})
    killed = dataclasses.replace(whole, output_dir=str(tmp_path / "killed"))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(plain(killed.to_dict())))
    command = [sys.executable, "train.py", "--config", str(config)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env={**os.environ, **threads})
    metrics = Path(killed.output_dir) / "metrics.jsonl"
    while process.poll() is None and (not metrics.is_file() or metrics.read_text().count("\n") < 12):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert list_checkpoints(Path(killed.output_dir)), "a checkpoint is there before the kill"
    assert not (Path(killed.output_dir) / "summary.json").exists()

    run = train(dataclasses.replace(killed, resume="auto"), "")
    expected = losses(train(whole, ""))
    found = losses(run)
    assert sorted(found) == list(range(1, 25))
    assert found == expected
    summaries = [json.loads((each / "summary.json").read_text()) for each in (run, Path(whole.output_dir))]
    assert summaries[0]["model_digest"] == summaries[1]["model_digest"]


@pytest.mark.long
def test_a_schedulers_sigterm_to_the_whole_group(recipe: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = recipe("run", training={"steps": 5000, "checkpoint_steps": 0}, data={"workers": 2})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(config.to_dict())))
    process = subprocess.Popen(
        [sys.executable, "train.py", "--config", str(file)], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    metrics = Path(config.output_dir) / "metrics.jsonl"
    while process.poll() is None and (not metrics.is_file() or metrics.read_text().count("\n") < 5):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors.decode()
    assert errors.decode().endswith(f"accelerate launch train.py --config {file} --resume auto\n")
    assert "Traceback" not in errors.decode()
    assert len(list_checkpoints(Path(config.output_dir))) == 1


def test_a_full_disk_costs_no_older_checkpoint(tmp_path: Path) -> None:
    model = torch.nn.Linear(200, 200)
    optimizer = torch.optim.AdamW(model.parameters())
    first = save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(
            CheckpointError,
            match="step_00000002: can't be written: .*; free some space, .*; older checkpoints are untouched$",
        ):
            save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [first.name]
    save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000002"]
