"""One short training with every head of the registry: it learns what chance does not know."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import small_pool

import mmrep
from mmrep.config.evaluation import SetConfig
from mmrep.config.tree import TrainConfig
from mmrep.pooling import list_pools
from mmrep.training.trainer import train

QUICK = ("cls", "ggem", "mmcap", "concat")
"""Heads that the short run of the tests trains: each family of the contract once."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in list_pools()]
)
def test_learns_to_tell_colours(recipe: Callable[..., TrainConfig], colour_set: Path, name: str) -> None:
    config = recipe(
        model={"pool": small_pool(name)},
        source={"caption": "cls"},
        # A class token sees no colour but through the trunk's attention, which takes longer to learn.
        training={"steps": 48 if name == "cls" else 24, "global_batch": 16, "checkpoint_steps": 0},
        optim={"lr": 2e-3},
        evaluation={"sets": [SetConfig(str(colour_set), name="colours")]},
    )
    run = train(config, "")
    metrics = json.loads((run / "results.json").read_text())["results"][0]["metrics"]
    assert metrics["acc1"] >= 0.75  # chance is 0.25
    assert all(parameter.isfinite().all() for parameter in mmrep.load(run).image.pool.parameters())
