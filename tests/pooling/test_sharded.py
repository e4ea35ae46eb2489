"""Heads under DDP and FSDP2 on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
def test_gradients_are_those_of_the_whole_batch() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
         "--rdzv_endpoint", "localhost:0", str(Path(__file__).with_name("sharded.py"))],
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "equal"
