"""A training recipe small enough for tests."""

from pathlib import Path
from typing import Any

from conftest import TINY_MODEL

from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.loss import LossConfig
from mmrep.config.model import ImageConfig, ModelConfig, TextConfig
from mmrep.config.training import OptimConfig, TrainingConfig
from mmrep.config.tree import TrainConfig


def make_recipe(colour_set: Path, output: Path, **parts: Any) -> TrainConfig:
    """A run of 8 steps of 8 pairs on the colour set, its parts overridden by dicts of their fields."""
    model = {"pool": "ggem", "embed_dim": TINY_MODEL["embed_dim"]} | parts.pop("model", {})
    model.setdefault("image", ImageConfig(**TINY_MODEL["image"]))
    model.setdefault("text", TextConfig(**TINY_MODEL["text"]))
    source = {"shards": str(colour_set / "train"), "caption": "txt"} | parts.pop("source", {})
    data = {"train": [SourceConfig(**source)], "validation": ValidationConfig(0.1), "min_scale": 0.5}
    data |= parts.pop("data", {})
    sets = [SetConfig(str(colour_set), name="colours"), SetConfig(str(colour_set / "retrieval"), name="pairs")]
    training = {"steps": 8, "global_batch": 8, "log_every": 1, "checkpoint_steps": 4} | parts.pop("training", {})
    return TrainConfig(
        output_dir=str(output),
        model=ModelConfig(**model),
        data=DataConfig(**data),
        loss=LossConfig(**parts.pop("loss", {})),
        optim=OptimConfig(**({"lr": 1e-3, "warmup": 2, "clip_norm": 1.0} | parts.pop("optim", {}))),
        training=TrainingConfig(**training),
        evaluation=EvaluationConfig(**({"sets": sets} | parts.pop("evaluation", {}))),
        **parts,
    )
