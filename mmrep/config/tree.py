"""The whole config of a verb, made of the rooms' parts."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrep.config.checks import quoted, require, within
from mmrep.config.data import DataConfig
from mmrep.config.evaluation import EvaluationConfig
from mmrep.config.loss import LossConfig
from mmrep.config.model import ModelConfig
from mmrep.config.study import LARGEST_SEED, StudyConfig
from mmrep.config.training import OptimConfig, TrainingConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        output_dir: where the run is written.
        seed: of order, draws and initial values.
        resume: `none`, `auto` (the newest checkpoint of output_dir that is whole, if there is one), or a
            checkpoint's folder.
        resume_changes: `refuse` to resume with another model, loss, optimiser or number of steps than the checkpoint's,
            or `allow` it.
        model: the dual encoder.
        data: the training pairs.
        loss: the loss.
        optim: optimiser and schedule.
        training: steps, batch, precision, checkpoints.
        evaluation: sets evaluated at the end.
    """

    output_dir: str = "runs/run"
    seed: int = 0
    resume: str = "none"
    resume_changes: Literal["refuse", "allow"] = "refuse"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        within("seed", self.seed, 0, LARGEST_SEED)
        require(bool(self.output_dir.strip()), "output_dir: expected a folder, got an empty name")
        require(
            self.model.name is not None or self.model.image.trunk is not None,
            "model: give model.name (an open_clip model, say ViT-B-16) or model.image.trunk (a timm model)",
        )
        require(
            self.model.name is None or self.model.image.trunk is None,
            f"model.name {quoted(self.model.name)} and model.image.trunk {quoted(self.model.image.trunk)} each stand "
            "for a model: give one of them (in a file that gives a trunk, model.image.trunk null drops it)",
        )
        require(
            len(self.data.train) > 0, "data.train: expected at least one source, as in [{shards: train/{0..9}.tar}]"
        )
        spent = self.optim.warmup + (self.optim.cooldown if self.optim.schedule == "cooldown" else 0)
        require(
            spent <= self.training.steps,
            f"optim.warmup + optim.cooldown: expected at most training.steps = {self.training.steps}, got {spent}; "
            "shorten them too",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists, for config.yaml and digests."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CompareConfig(TrainConfig):
    """A study: `study` says which poolings and seeds; the rest is the recipe they share.

    Attributes:
        study: poolings, seeds, baseline.
    """

    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study.primary is not None:
            names = [each.result_name for each in self.evaluation.sets]
            require(
                self.study.primary.rpartition("/")[0] in names,
                f"study.primary {quoted(self.study.primary)}: not a set of evaluation.sets ({', '.join(names)})",
            )


def differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two configs in plain form differ: dotted key → (value in `a`, value in `b`)."""
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*a, *(key for key in b if key not in a)]:
            found |= differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if a == b else {prefix: (a, b)}
