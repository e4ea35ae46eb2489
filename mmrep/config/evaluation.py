"""Which sets a model is evaluated on, and how."""

import typing
from dataclasses import dataclass, field
from typing import Literal

from mmrep.config.checks import at_least, one_of, require
from mmrep.config.finetune import FinetuneConfig
from mmrep.config.instance import InstanceConfig
from mmrep.config.probe import KnnConfig, ProbeConfig
from mmrep.config.robustness import CorruptionConfig, OcclusionConfig

Task = Literal[
    "zeroshot", "retrieval", "linear_probe", "knn", "instance", "pairs", "corruption", "occlusion", "finetune"
]
TASKS: tuple[str, ...] = typing.get_args(Task)

Format = Literal["webdataset", "folder", "imagenet-val", "coco", "karpathy", "csv"]
FORMATS: tuple[str, ...] = typing.get_args(Format)


@dataclass(frozen=True)
class SetConfig:
    """One evaluation set.

    Attributes:
        path: the set's folder or fsspec address, in CLIP_benchmark's layout; or, by `format`, a folder of images or an
            annotation file; or `scenes:classes`, `scenes:captions`.
        name: name in the results; None: the folder's.
        task: one or several of `zeroshot`, `retrieval`, `linear_probe`, `knn`, `instance`, `pairs`, `corruption`,
            `occlusion`, `finetune`; `auto`: `zeroshot` for classes, `retrieval` for captions.
        split: folder of the shards; of `karpathy`, the split in the file; of `folder`, a folder of class folders.
        format: `webdataset` (CLIP_benchmark's layout), `folder` (a folder for each class), `imagenet-val` (flat),
            `coco`, `karpathy`, `csv`.
        images: folder that the names in the annotation file start in.
        labels: of `imagenet-val`, the file of labels.
        classnames: a file with a name a line, or `imagenet` for open_clip's; None: those of the set.
        templates: a file of templates with `{c}`, or `imagenet` for OpenAI's 80; None: those of the set.
        train_split: what probes and fine-tuning are fitted on.
        ground_truth: of `instance`, the file that says which images show the same.
    """

    path: str
    name: str | None = None
    task: str | list[str] = "auto"
    split: str = "test"
    format: Format = "webdataset"
    images: str | None = None
    labels: str | None = None
    classnames: str | None = None
    templates: str | None = None
    train_split: str = "train"
    ground_truth: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "a set needs a path")
        require(self.name is None or "/" not in self.name, f"set name {self.name!r}: no '/' allowed")
        require(bool(self.tasks), f"set {self.path}: task: expected at least one")
        for task in self.tasks:
            one_of("task", task, ("auto", *TASKS))
        one_of("format", self.format, FORMATS)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is asked, one by one."""
        return (self.task,) if isinstance(self.task, str) else tuple(self.task)


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation sets and speed.

    Attributes:
        sets: the sets; in training they are evaluated once, at the end.
        batch_size: images in one forward pass.
        text_batch_size: texts in one forward pass.
        workers: processes that read and decode; None as in training.
        cache: keep embeddings in the cache folder and take them from there.
        probe: of the task `linear_probe`.
        knn: of the task `knn`.
        instance: of the task `instance`.
        corruption: of the task `corruption`.
        occlusion: of the task `occlusion`.
        finetune: of the task `finetune`.
    """

    sets: list[SetConfig] = field(default_factory=list)
    batch_size: int = 128
    text_batch_size: int = 256
    workers: int | None = None
    cache: bool = False
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    instance: InstanceConfig = field(default_factory=InstanceConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    occlusion: OcclusionConfig = field(default_factory=OcclusionConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        at_least("evaluation.batch_size", self.batch_size, 1)
        at_least("evaluation.text_batch_size", self.text_batch_size, 1)
        at_least("evaluation.workers", self.workers, 0)
