"""The configs of verbs that write shards: the synthetic scenes, and packing."""

from dataclasses import dataclass

from mmrep.config.checks import at_least, require, within

SCENE_CLASSES = 64
"""Classes of the synthetic scenes: colours × shapes."""


@dataclass(frozen=True)
class ScenesSpec:
    """The synthetic set of scenes.

    Attributes:
        seed: Seed of all draws.
        train: Number of training pairs.
        classes_test: Number of images of the zero-shot set, the same for each of the 64 classes.
        gallery: Number of images of the retrieval set, with five captions each.
        size: Height and width of the images in pixels.
        shard_size: Number of training pairs in a shard.
    """

    seed: int = 0
    train: int = 16_384
    classes_test: int = 1_280
    gallery: int = 500
    size: int = 32
    shard_size: int = 2_048

    def __post_init__(self) -> None:
        within("scenes.seed", self.seed, 0, 2**64 - 1)
        at_least("scenes.train", self.train, 1)
        at_least("scenes.classes_test", self.classes_test, SCENE_CLASSES)
        require(
            self.classes_test % SCENE_CLASSES == 0,
            f"scenes.classes_test: expected a multiple of {SCENE_CLASSES} (the classes), got {self.classes_test}",
        )
        # Captions are unique in the gallery. The fifth has 37,632 values; close to that, the gallery would never fill.
        within("scenes.gallery", self.gallery, 1, 10_000)
        within("scenes.size", self.size, 16, 1024)
        at_least("scenes.shard_size", self.shard_size, 1)


@dataclass(frozen=True)
class PackSpec:
    """Options of packing.

    Attributes:
        samples_per_shard: Most samples of a shard.
        max_shard_mb: Most megabytes (10^6 bytes) of a shard, unless one sample alone is larger.
        shuffle: Seed of the samples' order; null keeps the order of the source.
        allow_missing: Most problems that may be skipped, as a number or as a share of all samples such as 0.05.
    """

    samples_per_shard: int = 10_000
    max_shard_mb: float = 1000.0
    shuffle: int | None = None
    allow_missing: int | float = 0

    def __post_init__(self) -> None:
        at_least("--samples_per_shard", self.samples_per_shard, 1)
        at_least("--max_shard_mb", self.max_shard_mb, 0.01)
        at_least("--shuffle", self.shuffle, 0)
        at_least("--allow_missing", self.allow_missing, 0)
        share = isinstance(self.allow_missing, float)
        require(
            not share or self.allow_missing < 1,
            f"--allow_missing: expected a number, or a share below 1, got {self.allow_missing}",
        )
