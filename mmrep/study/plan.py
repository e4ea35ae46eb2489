"""The runs of a study, and the comparison with the study that a folder holds."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import PoolConfig
from mmrep.config.tree import CompareConfig, TrainConfig, changed_fields
from mmrep.training.output import STUDY, read_config


class PlannedRun(NamedTuple):
    """One training run of a study.

    Attributes:
        pool: label of the head.
        seed: seed of data order, augmentation and initial values.
        config: config of the run.
    """

    pool: str
    seed: int
    config: TrainConfig


def plan_runs(config: CompareConfig) -> list[PlannedRun]:
    """Return all runs, seed by seed, so that an interrupted study still has complete seeds."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    return [
        PlannedRun(str(pool.label), seed, _run_config(shared, config, pool, seed))
        for seed in config.study.seeds
        for pool in config.study.poolings
    ]


def _run_config(shared: dict[str, Any], config: CompareConfig, pool: PoolConfig, seed: int) -> TrainConfig:
    folder = Path(config.output_dir) / "runs" / f"{pool.label}-{seed}"
    model = dataclasses.replace(config.model, pool={"name": pool.name, "args": pool.args})
    return TrainConfig(**{**shared, "model": model, "seed": seed, "output_dir": str(folder), "resume": "auto"})


def check_same_study(config: CompareConfig, recipe: dict[str, Any]) -> None:
    """Check that a folder holds no study with another recipe. Heads and seeds may be added to a study.

    Args:
        config: config of the study.
        recipe: the same as plain dicts.

    Raises:
        ConfigError: the folder holds a study with another recipe; the first difference is named.
    """
    place = Path(config.output_dir) / STUDY
    if not place.is_file():
        return
    before = read_config(place) or recipe
    for key, (old, new) in changed_fields(before, recipe).items():
        if not key.startswith(("study.", "output_dir", "resume")):
            raise ConfigError(
                f"{config.output_dir} holds a study with {key} = {old}, not {new}: "
                "choose another --output_dir, or restore the setting to continue"
            )
