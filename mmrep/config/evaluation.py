"""Evaluation sets, and options of evaluation."""

import posixpath
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmrep.config.checks import at_least, one_of, quoted, require
from mmrep.config.finetune import FinetuneConfig
from mmrep.config.instance import InstanceConfig
from mmrep.config.probe import KnnConfig, ProbeConfig
from mmrep.config.robustness import CorruptionConfig, OcclusionConfig

Task = Literal[
    "zeroshot",
    "retrieval",
    "linear_probe",
    "knn",
    "instance",
    "pairs",
    "corruption",
    "occlusion",
    "finetune",
    "rerank",
]
TASKS: tuple[str, ...] = typing.get_args(Task)

Format = Literal["webdataset", "folder", "imagenet-val", "coco", "karpathy", "csv"]
FORMATS: tuple[str, ...] = typing.get_args(Format)
WITHOUT_SPLITS = ("imagenet-val", "coco", "csv")
_ANNOTATED = ("coco", "karpathy", "csv")
_CLASSES = ("webdataset", "folder", "imagenet-val")
_READ_BY = {
    "images": _ANNOTATED, "labels": ("imagenet-val",), "devkit_meta": ("imagenet-val",), "separator": ("csv",),
    "classnames": _CLASSES, "templates": _CLASSES, "captions_per_image": ("webdataset", *_ANNOTATED),
}  # fmt: skip
_NEEDED = {"imagenet-val": ("labels",), **dict.fromkeys(_ANNOTATED, ("images",))}


@dataclass(frozen=True)
class SetConfig:
    """One evaluation set.

    Attributes:
        path: Folder of the set in CLIP_benchmark's layout, local or an address that fsspec opens (`https://`,
            `s3://`, `hf://datasets/USER/NAME`). With another `format` it is a local folder of images or an
            annotation file. `scenes:classes` and `scenes:captions` are the synthetic set.
        name: Name in the results. By default that of the folder or file.
        task: One or several of zeroshot, retrieval, linear_probe, knn, instance, pairs, corruption, occlusion,
            finetune, rerank. auto means zeroshot for classes and retrieval for captions.
        split: Folder of the split's shards; of karpathy, the split in the file; of folder, the folder of class
            folders within `path`, or `.` for `path` itself. The other formats have no splits.
        format: Format of the set: webdataset (CLIP_benchmark's layout), folder (a folder for each class),
            imagenet-val (flat), coco, karpathy, csv.
        images: Folder that the image names in the annotation file start in.
        labels: File of labels of an imagenet-val set: lines `NAME LABEL` or `NAME WNID`, one wnid a line, or the
            devkit's ground truth.
        devkit_meta: The devkit's meta.mat, which tells what the numbers of its ground truth mean.
        classnames: File with one class name a line (of folder, in the order of the folders, or `FOLDER<tab>NAME`),
            or imagenet for open_clip's names. By default the set's own names.
        templates: File of templates with `{c}`, or imagenet for OpenAI's 80. By default the set's own; without any,
            OpenAI's for ImageNet's names and `a photo of a {c}.` for others.
        captions_per_image: Number of captions of an image to use, from the first (COCO's usual protocol takes 5).
            By default all, as in CLIP_benchmark.
        image_column: Column of image paths in a csv set.
        caption_column: Column of captions in a csv set. Rows with the same path are the captions of one image.
        separator: Separator of a csv set: one character, tab or comma. By default a tab if the header has one, else
            a comma.
        train_split: Split that probes and fine-tuning are trained on.
        ground_truth: File of an instance set that tells which images show the same object.
    """

    path: str
    name: str | None = None
    task: str | list[str] = "auto"
    split: str = "test"
    format: Format = "webdataset"
    images: str | None = None
    labels: str | None = None
    devkit_meta: str | None = None
    classnames: str | None = None
    templates: str | None = None
    captions_per_image: int | None = None
    image_column: str = "filepath"
    caption_column: str = "title"
    separator: str | None = None
    train_split: str = "train"
    ground_truth: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.path), "a set needs a path")
        # The address is written to config.yaml and results, and a password with it.
        require(
            re.search(r"://[^/@]*:[^/@]*@", self.path) is None,
            "a set's path: a password in an address; the protocol's own settings take it",
        )
        require(not self.path.startswith("pipe:"), "a set's path: pipe: runs a shell and is not supported")
        page = re.match(r"https?://[^/]+/datasets/([^/]+/[^/]+)/(?:tree|resolve|raw|blob)/([^/]+)(/.*)?$", self.path)
        if page:
            revision = "" if page[2] == "main" else f"@{page[2]}"
            address = f"hf://datasets/{page[1]}{revision}{(page[3] or '').rstrip('/')}"
            require(False, f"set {self.path}: a page of the Hub, which has no folders; write {address}")
        require(self.name is None or "/" not in self.name, f"set name {quoted(self.name)}: no '/' allowed")
        require(bool(self.tasks), f"set {self.path}: task: expected at least one")
        for task in self.tasks:
            one_of("task", task, ("auto", *TASKS))
        one_of("format", self.format, FORMATS)
        for name in ("split", "train_split"):
            value = getattr(self, name)
            require(bool(value), f"set {self.path}: {name}: expected a name, or . for the folder itself")
            # Two spellings of one split must not count as two splits.
            object.__setattr__(self, name, posixpath.normpath(value))
        at_least(f"set {self.path}: captions_per_image", self.captions_per_image, 1)
        self._check_fields()

    def _check_fields(self) -> None:
        """Raise ConfigError for a field that the format needs and lacks, or that it would not read."""
        for name, readers in _READ_BY.items():
            if name == "images" and "pairs" in self.tasks:
                continue
            given = getattr(self, name) is not None
            require(
                given or name not in _NEEDED.get(self.format, ()),
                f"set {self.path}: format {self.format} needs `{name}`",
            )
            require(
                not given or self.format in readers,
                f"set {self.path}: `{name}` is not read with format {self.format} (but with {', '.join(readers)})",
            )
        require(
            self.format not in WITHOUT_SPLITS or self.split == "test",
            f"set {self.path}: format {self.format} has no split {quoted(self.split)}; a training split needs "
            "format folder, karpathy or webdataset",
        )

    @property
    def result_name(self) -> str:
        """The set's name in results: its own, else that of the folder or the annotation file."""
        if self.name:
            return self.name
        if "://" in self.path:
            return self.path.rstrip("/").rpartition("/")[2]
        path = Path(self.path.removeprefix("scenes:")).expanduser().resolve()
        return path.stem if self.format in _ANNOTATED else path.name

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, one by one."""
        return (self.task,) if isinstance(self.task, str) else tuple(self.task)


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation sets, speed, and options of tasks.

    Attributes:
        sets: The sets, as in [{path: DIR}]. In training they are evaluated once, at the end.
        batch_size: Images in one forward pass.
        text_batch_size: Texts in one forward pass.
        workers: Processes that read and decode images. By default as many as in training.
        cache: Keep embeddings in the cache folder, and take them from there.
        probe: Options of the task linear_probe.
        knn: Options of the task knn.
        instance: Options of the tasks instance and rerank.
        corruption: Options of the task corruption.
        occlusion: Options of the task occlusion.
        finetune: Options of the task finetune.
    """

    sets: list[SetConfig] = field(default_factory=list)
    batch_size: int = 128
    text_batch_size: int = 256
    workers: int | None = None
    cache: bool = True
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
