"""Corrupted and occluded images."""

from dataclasses import dataclass

from mmrep.config.checks import one_of, require, within

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
)
"""ImageNet-C's, but for frost, which needs its authors' photographs. The place of a name keys its random draws."""


@dataclass(frozen=True)
class CorruptionConfig:
    """Which corruptions, how strong.

    Attributes:
        kinds: names; empty: all.
        severities: of 1 to 5.
        seed: of what is random.
    """

    kinds: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            one_of("corruption.kinds", kind, CORRUPTIONS)
        require(bool(self.severities), "corruption.severities: expected at least one")
        for severity in self.severities:
            within("corruption.severities", severity, 1, 5)
        _require_distinct("corruption.kinds", self.kinds)
        _require_distinct("corruption.severities", self.severities)
        within("corruption.seed", self.seed, 0, 2**64 - 1)


@dataclass(frozen=True)
class OcclusionConfig:
    """How much of the image is covered.

    Attributes:
        shares: of the patches, each reported.
        seed: of which.
    """

    shares: tuple[float, ...] = (0.25, 0.5, 0.75)
    seed: int = 0

    def __post_init__(self) -> None:
        require(bool(self.shares), "occlusion.shares: expected at least one")
        for share in self.shares:
            within("occlusion.shares", share, 0.0, 1.0)
        _require_distinct("occlusion.shares", self.shares)
        within("occlusion.seed", self.seed, 0, 2**64 - 1)


def _require_distinct(field: str, values: tuple[object, ...]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    require(twice is None, f"{field}: {twice} occurs twice")
