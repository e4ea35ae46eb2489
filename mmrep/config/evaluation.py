"""Which sets a model is evaluated on."""

import typing
from dataclasses import dataclass, field
from typing import Literal

from mmrep.config.checks import at_least, one_of, require

Task = Literal["auto", "zeroshot", "retrieval"]


@dataclass(frozen=True)
class SetConfig:
    """One evaluation set in CLIP_benchmark's layout.

    Attributes:
        path: the set's folder, or `scenes:classes`, `scenes:captions`.
        name: name in the results; None: the folder's.
        task: `zeroshot`, `retrieval`, or `auto` (retrieval where dataset_type.txt says so).
        split: folder of the shards.
    """

    path: str
    name: str | None = None
    task: Task = "auto"
    split: str = "test"

    def __post_init__(self) -> None:
        require(bool(self.path), "a set needs a path")
        require(self.name is None or "/" not in self.name, f"set name {self.name!r}: no '/' allowed")
        one_of("task", self.task, typing.get_args(Task))


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation sets and speed.

    Attributes:
        sets: the sets; in training they are evaluated once, at the end.
        batch_size: images in one forward pass.
        text_batch_size: texts in one forward pass.
        workers: processes that read and decode; None as in training.
    """

    sets: list[SetConfig] = field(default_factory=list)
    batch_size: int = 128
    text_batch_size: int = 256
    workers: int | None = None

    def __post_init__(self) -> None:
        at_least("evaluation.batch_size", self.batch_size, 1)
        at_least("evaluation.text_batch_size", self.text_batch_size, 1)
        at_least("evaluation.workers", self.workers, 0)
