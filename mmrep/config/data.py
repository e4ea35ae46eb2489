"""Where training pairs come from and how an image is cropped."""

import typing
from dataclasses import dataclass, field
from typing import Literal

from mmrep.config.checks import above, at_least, require, within

CAPTION_KINDS = ("txt", "cls", "json:KEY")


@dataclass(frozen=True)
class SourceConfig:
    """One source of pairs.

    Attributes:
        shards: tar files: a path with braces (`train/{0..9}.tar`) or a glob, a folder, `scenes:train`, or a list of
            these.
        caption: `txt` (one of the lines of the member is drawn), `json:KEY` (a text or a list of texts in the json
            member), or `cls` (class name + template; the pairs of one class form a group).
        classnames: file of class names for `cls`; None looks for classnames.txt beside the shards and one folder up.
        templates: file of templates with `{c}` for `cls`; None looks for zeroshot_classification_templates.txt
            likewise.
        weight: share of this source among all; without any weights the sources are one set.
    """

    shards: str | list[str]
    caption: str = "txt"
    classnames: str | None = None
    templates: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.shards), "data.train: a source needs `shards`, as in shards: train/{00000..00099}.tar")
        valid = self.caption in ("txt", "cls") or (self.caption.startswith("json:") and len(self.caption) > 5)
        require(valid, f"data.train caption: unknown value {self.caption!r} (valid: {', '.join(CAPTION_KINDS)})")
        above("data.train weight", self.weight, 0)


@dataclass(frozen=True)
class ValidationConfig:
    """The validation split, cut from the training sources by a hash of each sample's shard name and key.

    Attributes:
        fraction: share of the samples held out; 0 holds none out.
        max_samples: at most this many of them are evaluated.
    """

    fraction: float = 0.0
    max_samples: int = 2000

    def __post_init__(self) -> None:
        within("data.validation.fraction", self.fraction, 0, 0.5)
        at_least("data.validation.max_samples", self.max_samples, 1)


Crop = Literal["random_resized", "resize"]


@dataclass(frozen=True)
class DataConfig:
    """Training data.

    Attributes:
        train: the sources.
        validation: the part of them that is held out.
        crop: `random_resized` (a random part of the image, resized) or `resize` (short side, centre crop: no
            randomness).
        min_scale: least share of the image's area that a random crop keeps.
        flip: probability of a horizontal flip.
        workers: loader processes; None: one a core, at most 8, none where the machine has fewer than 4 cores a process.
        prefetch: batches each worker prepares ahead.
        max_pixels: an image with more pixels is refused.
    """

    train: list[SourceConfig] = field(default_factory=list)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    crop: Crop = "random_resized"
    min_scale: float = 0.9
    flip: float = 0.0
    workers: int | None = None
    prefetch: int = 2
    max_pixels: int = 89_478_485

    def __post_init__(self) -> None:
        require(self.crop in typing.get_args(Crop), f"data.crop: unknown value {self.crop!r}")
        within("data.min_scale", self.min_scale, 0.01, 1)
        within("data.flip", self.flip, 0, 1)
        at_least("data.workers", self.workers, 0)
        at_least("data.prefetch", self.prefetch, 1)
        at_least("data.max_pixels", self.max_pixels, 1)
        weighted = [source.weight is not None for source in self.train]
        require(all(weighted) or not any(weighted), "data.train: give every source a weight, or none")
