"""The configs of evaluation on corrupted and occluded images."""

from dataclasses import dataclass

from mmrep.config.checks import one_of, require, within

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "fog", "brightness", "contrast"),
    *("elastic_transform", "pixelate", "jpeg_compression"),
)
"""ImageNet-C's corruptions without frost, which needs its authors' photographs. Positions are keys of random draws."""


@dataclass(frozen=True)
class CorruptionConfig:
    """Corruptions and their severities.

    Attributes:
        kinds: Names of the corruptions. By default all.
        severities: Severities from 1 to 5.
        seed: Seed of all random draws.
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
    """Occlusion of random patches.

    Attributes:
        shares: Shares of the patches to cover. Each is reported.
        seed: Seed of the choice of patches.
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
