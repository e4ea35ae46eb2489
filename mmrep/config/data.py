"""Where training pairs come from and how an image is cropped."""

import re
import typing
from dataclasses import dataclass, field
from typing import Literal

from mmrep.config.checks import above, at_least, quoted, require, within

CAPTION_KINDS = ("txt", "cls", "json:KEY")


@dataclass(frozen=True)
class SourceConfig:
    """One source of pairs.

    Attributes:
        shards: tar files: a path with braces (`train/{0..9}.tar`) or a glob, a folder, an address that fsspec opens
            (`https://`, `s3://`, `hf://`), a catalog (`.npz`, from `mmrep data index`), `scenes:train`, or a list of
            these.
        caption: `txt` (one of the lines of the member is drawn), `json:KEY` (a text or a list of texts in the json
            member), `cls` (class name + template; the pairs of one class form a group), or several of these with
            weights, as in `{txt: 0.3, "json:synthetic": 0.7}`: one is drawn for each pair.
        classnames: file of class names for `cls`; None looks for classnames.txt beside the shards and one folder up.
        templates: file of templates with `{c}` for `cls`; None looks for zeroshot_classification_templates.txt
            likewise.
        subset: file of the uids to train on (.npy of dtype `u8,u8`, as DataComp's); None: all samples.
        weight: share of this source among all; without any weights the sources are one set.
    """

    shards: str | list[str]
    caption: str | dict[str, float] = "txt"
    classnames: str | None = None
    templates: str | None = None
    subset: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.shards), "data.train: a source needs `shards`, as in shards: train/{00000..00099}.tar")
        for place in [self.shards] if isinstance(self.shards, str) else self.shards:
            # It would be written to config.yaml, and go to the Hub with the model.
            secret = re.search(r"://[^/@]*:[^/@]*@", place)
            require(secret is None, "data.train shards: a password in an address; the protocol's own settings take it")
        require(bool(self._kinds), "data.train caption: expected at least one kind")
        for kind, weight in self._kinds.items():
            valid = kind in ("txt", "cls") or (kind.startswith("json:") and len(kind) > 5)
            require(valid, f"data.train caption: unknown value {quoted(kind)} (valid: {', '.join(CAPTION_KINDS)})")
            above(f"data.train caption {kind}", weight, 0)
        above("data.train weight", self.weight, 0)

    def caption_shares(self) -> dict[str, float]:
        """The kinds of caption and their shares, which sum to 1."""
        total = sum(self._kinds.values())
        return {kind: weight / total for kind, weight in self._kinds.items()}

    @property
    def _kinds(self) -> dict[str, float]:
        return self.caption if isinstance(self.caption, dict) else {self.caption: 1.0}


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
        dct_scaling: decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is enough: faster, slightly other pixels.
        sizes: image size from a step on, as in `{0: 112, 20000: 224}`; the last one has to be the model's. None: the
            model's in every step.
        shuffle_block: samples that are shuffled together; larger sources are shuffled in blocks of shards.
        max_bad_fraction: share of the pairs that may be unreadable; each is logged, and replaced by another sample.
            0: the first one ends the run.
        workers: loader processes; None: one a core, at most 8, none where the machine has fewer than 4 cores a process.
        prefetch: batches each worker prepares ahead.
        max_pixels: an image with more pixels is refused.
        decoded_gb: GB for decoded images in the cache: a set that fits is decoded once, and shared by loader processes,
            ranks and later runs; 0: never.
        cache_gb: GB for local copies of remote and staged shards.
        cache_dir: folder for them, on a disk of the node; None: in `$MMREP_CACHE` or ~/.cache/mmrep.
        stage: copy local shards there too, from a slow shared file system.
        ledger: write down which sample every pair of the run was; `mmrep data ledger RUN` proves the order from it.
    """

    train: list[SourceConfig] = field(default_factory=list)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    crop: Crop = "random_resized"
    min_scale: float = 0.9
    flip: float = 0.0
    dct_scaling: bool = False
    sizes: dict[int, int] | None = None
    shuffle_block: int = 1_048_576
    max_bad_fraction: float = 0.0
    workers: int | None = None
    prefetch: int = 2
    max_pixels: int = 89_478_485
    decoded_gb: float = 0.0
    cache_gb: float = 100.0
    cache_dir: str | None = None
    stage: bool = False
    ledger: bool = False

    def __post_init__(self) -> None:
        require(self.crop in typing.get_args(Crop), f"data.crop: unknown value {quoted(self.crop)}")
        within("data.min_scale", self.min_scale, 0.01, 1)
        within("data.flip", self.flip, 0, 1)
        within("data.max_bad_fraction", self.max_bad_fraction, 0, 0.5)
        for name in ("shuffle_block", "max_pixels"):
            at_least(f"data.{name}", getattr(self, name), 1)
        within("data.prefetch", self.prefetch, 1, 1024)
        within("data.workers", self.workers or 0, 0, 1024)
        at_least("data.decoded_gb", self.decoded_gb, 0)
        above("data.cache_gb", self.cache_gb, 0)
        for step, size in (self.sizes or {0: 1}).items():
            at_least("data.sizes: a step", step, 0)
            at_least("data.sizes: a size", size, 1)
        require(self.sizes is None or 0 in self.sizes, "data.sizes: expected the size from step 0 on, as in {0: 112}")
        weighted = [source.weight is not None for source in self.train]
        require(all(weighted) or not any(weighted), "data.train: give every source a weight, or none")
