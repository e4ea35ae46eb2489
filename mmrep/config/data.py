"""Training data: sources of pairs, captions, augmentation, loading."""

import re
import typing
from dataclasses import dataclass, field
from typing import Literal

from mmrep.config.checks import above, at_least, quoted, require, within

CAPTION_KINDS = ("txt", "cls", "json:KEY")


@dataclass(frozen=True)
class SourceConfig:
    """One source of image-text pairs.

    Attributes:
        shards: Tar files: a path with braces (`train/{0..9}.tar`) or a glob, a folder, an address that fsspec opens
            (`https://`, `s3://`, `hf://`), a catalog (`.npz`, from `mmrep data index`), `scenes:train`, or a list
            of these.
        caption: Source of the captions: `txt` (one line of the member is drawn), `json:KEY` (a text or a list of
            texts in the json member), `cls` (class name and template; the pairs of one class form a group), or
            several of these with weights, as in `{txt: 0.3, "json:synthetic": 0.7}`, of which one is drawn for each
            pair.
        classnames: File of class names for `cls`. By default classnames.txt next to the shards or one folder up.
        templates: File of templates with `{c}` for `cls`. By default zeroshot_classification_templates.txt next to
            the shards or one folder up.
        subset: File with the uids to train on (.npy of dtype `u8,u8`, as DataComp has). By default all samples are
            used.
        weight: Share of this source among all. Without any weights, all sources form one set.
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
        """Return the kinds of caption with their shares, which sum to 1."""
        total = sum(self._kinds.values())
        return {kind: weight / total for kind, weight in self._kinds.items()}

    @property
    def _kinds(self) -> dict[str, float]:
        return self.caption if isinstance(self.caption, dict) else {self.caption: 1.0}


@dataclass(frozen=True)
class ValidationConfig:
    """The validation split. It is cut from the training sources by a hash of each sample's shard name and key.

    Attributes:
        fraction: Share of the samples to hold out; 0 holds none out.
        max_samples: Largest number of held-out samples to evaluate.
    """

    fraction: float = 0.0
    max_samples: int = 2000

    def __post_init__(self) -> None:
        within("data.validation.fraction", self.fraction, 0, 0.5)
        at_least("data.validation.max_samples", self.max_samples, 1)


Crop = Literal["random_resized", "resize"]


@dataclass(frozen=True)
class DataConfig:
    """Training data and augmentation.

    Attributes:
        train: The sources of training pairs, as in [{shards: DIR, caption: txt}].
        validation: The part of them that is held out for validation.
        crop: How a training image is cropped: random_resized takes a random part and resizes it, resize takes the
            centre after resizing the short side.
        min_scale: Smallest share of the image's area that a random crop keeps.
        flip: Probability of a horizontal flip.
        dct_scaling: Decode JPEGs at 1/2, 1/4 or 1/8 of their size where that is enough. This is faster, and pixels
            differ slightly.
        sizes: Image size from a step on, as in `{0: 112, 20000: 224}`. The last one has to be the model's. By
            default all steps use the model's size.
        shuffle_block: Number of samples that are shuffled together. Larger sources are shuffled in blocks of
            shards.
        max_bad_fraction: Share of the pairs that may be unreadable. Each one is logged and replaced by another
            sample; with 0 the first one ends the run.
        workers: Loader processes. By default one for each core, at most 8, and none where the machine has fewer
            than 4 cores for each training process.
        prefetch: Batches that each loader process prepares ahead.
        max_pixels: Largest number of pixels of an image. Larger images are refused.
        decoded_gb: GB of the cache for decoded images. A set that fits is decoded once and shared by loader
            processes, ranks and later runs; 0 never does this.
        cache_gb: GB of the cache for copies of remote and staged shards.
        cache_dir: Folder of these copies, on a disk of the node. By default in `$MMREP_CACHE` or ~/.cache/mmrep.
        stage: Copy local shards to the cache too, for a slow shared file system.
        ledger: Record which sample every pair of the run was. `mmrep data ledger RUN` proves the order from it.
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
