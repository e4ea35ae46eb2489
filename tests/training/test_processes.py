"""Two real processes against one with the same global batch, launched as by a user whose machine has no GPU."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import mmrep
from mmrep.config.tree import TrainConfig
from mmrep.training.build import plain
from mmrep.training.trainer import train

ROOT = Path(__file__).parents[2]


def test_two_processes_equal_one(recipe: Callable[..., TrainConfig], tmp_path: Path) -> None:
    one = recipe("one", source={"caption": "cls"}, training={"steps": 6, "checkpoint_steps": 3})
    two = dataclasses.replace(one, output_dir=str(tmp_path / "two"))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(plain(two.to_dict())))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "launch/one_node.yaml"]
    environment = {key: value for key, value in os.environ.items() if key != "ACCELERATE_USE_CPU"}
    done = subprocess.run(
        [*launcher, "--num_processes", "2", "train.py", "--config", str(config)],
        cwd=ROOT, env=environment | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    train(one, "")
    runs = Path(one.output_dir), Path(two.output_dir)
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    assert len(metrics[0]) == len(metrics[1])
    for a, b in zip(*metrics, strict=True):
        assert a["step"] == b["step"]
        if "loss" in a:
            assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
            assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-3)
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    assert summaries[0]["batches"] == summaries[1]["batches"]
    weights = [mmrep.load(run).state_dict() for run in runs]
    # AdamW divides by the root of tiny second moments: rounding of gradients near 0 moves a weight by up to lr.
    gaps = [float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]]
    assert max(gaps) < 2e-3
    assert sorted(gaps)[len(gaps) // 2] < 1e-5
