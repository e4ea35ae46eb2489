"""The configs of `mmrep train` and `mmrep compare`."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrep.config.checks import ConfigError, at_least, hint, quoted, require, within
from mmrep.config.data import DataConfig
from mmrep.config.evaluation import EvaluationConfig
from mmrep.config.loss import LossConfig
from mmrep.config.model import ModelConfig
from mmrep.config.schema import read_value
from mmrep.config.study import LARGEST_SEED, StudyConfig
from mmrep.config.training import OptimConfig, TrainingConfig, in_steps


@dataclass(frozen=True)
class Seeds:
    """Seeds of parts of a run, where they differ from `seed`.

    Attributes:
        data: Seed of the order of the data, augmentation and dropout.
        trunk: Seed of the initial values of the trunk, the text tower and the logit scale.
        head: Seed of the initial values of the head and the projection after it.
    """

    data: int | None = None
    trunk: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                within(f"seeds.{name}", value, 0, LARGEST_SEED)


@dataclass(frozen=True)
class TrainConfig:
    """Train a CLIP-style image-text model, evaluate it, and write it to a run folder.

    Attributes:
        output_dir: Folder of the run. By default runs/NAME for train and studies/NAME for compare, where NAME is that
            of the config file.
        seed: Seed of data order, augmentation and initial values.
        seeds: Seeds of parts, where they differ from `seed`.
        resume: Where to go on: none, auto (the newest whole checkpoint in output_dir, if there is one), or the folder
            of a checkpoint.
        resume_changes: Whether resuming with another model, loss, optimiser or number of steps is an error (refuse) or
            allowed.
        plugins: Modules that register pooling heads of your own.
        model: The dual encoder.
        data: The training pairs.
        loss: The contrastive loss.
        optim: Optimiser and schedule.
        training: Steps, batch size, precision, checkpoints.
        evaluation: Sets to evaluate on at the end.
    """

    output_dir: str = "runs/run"
    seed: int = 0
    seeds: Seeds = field(default_factory=Seeds)
    resume: str = "none"
    resume_changes: Literal["refuse", "allow"] = "refuse"
    plugins: list[str] = field(default_factory=list)
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
        lengths = [self.optim.warmup, *([self.optim.cooldown] if self.optim.schedule == "cooldown" else [])]
        spent = sum(in_steps(length, self.training.steps) for length in lengths)
        require(
            spent <= self.training.steps,
            f"optim.warmup + optim.cooldown: expected at most training.steps = {self.training.steps}, got {spent}; "
            "shorten them too",
        )

    def seed_of(self, part: Literal["data", "trunk", "head"]) -> int:
        """Return the seed of a part; see `Seeds`."""
        own: int | None = getattr(self.seeds, part)
        return self.seed if own is None else own

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain dicts and lists, for config.yaml and digests."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class CompareConfig(TrainConfig):
    """Train and evaluate every pooling of a study with every seed, compare them, and write a report. All options but
    `study` are the recipe that the runs share.

    Attributes:
        workers: Number of processes that train runs side by side on this machine, or auto: one a GPU, and one where
            there is none.
        join: Whether to help with a study that other workers train too: take runs that are free until there are none.
        dry_run: Whether to show only what the study would train, what it costs, and the smallest difference that it
            can detect.
        study: Poolings, seeds, baseline.
    """

    workers: int | Literal["auto"] = 1
    join: bool = False
    dry_run: bool = False
    study: StudyConfig = field(default_factory=StudyConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers != "auto":
            at_least("workers", self.workers, 1)
        metric = self.study.primary.metric
        if metric is not None:
            names = [each.result_name for each in self.evaluation.sets]
            require(
                metric.rpartition("/")[0] in names,
                f"study.primary.metric {quoted(metric)}: not a set of evaluation.sets ({', '.join(names)})",
            )
        require(
            not self.study.tune.values or self.data.validation.fraction > 0,
            "study.tune: tuning needs held-out images; give data.validation.fraction, say 0.02",
        )
        for name, points in (("study.axes", self.study.axes), ("study.tune.values", self.study.tune.values)):
            for key, values in points.items():
                for value in values:
                    with_option(self.recipe(), key, value, name)

    def recipe(self) -> TrainConfig:
        """Return the options that all runs share."""
        return TrainConfig(**{each.name: getattr(self, each.name) for each in dataclasses.fields(TrainConfig)})


@dataclass(frozen=True)
class ScreenConfig(CompareConfig):
    """Train every pooling of a study on one frozen trunk, side by side on the same batches, and compare them. It takes
    a fraction of a study's time, and says which head suits a trunk that is there, not which trains the best trunk.

    Attributes:
        trunk: The model whose towers are frozen: a run, a folder of open_clip, a Hub model (hf-hub:NAME). By default
            the baseline's head trains one first, with the recipe of the config.
        trunk_steps: Number of steps that this first training takes. By default training.steps.
    """

    trunk: str | None = None
    trunk_steps: int | None = None

    def __post_init__(self) -> None:
        if self.trunk is not None and self.model.name is None and self.model.image.trunk is None:
            # The model is that of the trunk; until it is loaded its source stands for its name.
            image = dataclasses.replace(self.model.image, trunk=self.trunk)
            object.__setattr__(self, "model", dataclasses.replace(self.model, image=image))
        super().__post_init__()
        at_least("trunk_steps", self.trunk_steps, 1)
        require(not self.study.tune.values, "study.tune: screening tunes nothing; leave it out")
        axes = ", ".join(self.study.axes)
        require(not axes, f"study.axes {axes}: screening has one recipe; leave it out")


def with_option(config: Any, name: str, value: Any, where: str) -> Any:
    """Return a config with another value of one option.

    Args:
        config: a dataclass, or a mapping such as `model.image.args`.
        name: dotted name of the option, within `config`.
        value: the value, as YAML has it.
        where: the option that asks for it, for messages.

    Raises:
        ConfigError: there is no such option, or it does not take the value.
    """
    first, _, rest = name.partition(".")
    if isinstance(config, dict):
        return config | {first: with_option(config.get(first, {}), rest, value, where) if rest else value}
    fields = [each.name for each in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    require(first in fields, f"{where}: no option {quoted(first)}{hint(first, fields)} (valid: {', '.join(fields)})")
    if rest:
        inner = with_option(getattr(config, first), rest, value, where)
    else:
        inner = read_value(typing.get_type_hints(type(config))[first], value, f"{where}.{name}")
    try:
        return dataclasses.replace(config, **{first: inner})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def changed_fields(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return where two plain configs differ, as dotted key → (value in `a`, value in `b`)."""
    if isinstance(a, dict) and isinstance(b, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in [*a, *(key for key in b if key not in a)]:
            found |= changed_fields(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else str(key))
        return found
    return {} if a == b else {prefix: (a, b)}
