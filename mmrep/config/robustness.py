"""Corrupted and occluded images."""

from dataclasses import dataclass

from mmrep.config.checks import require, within


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
        require(bool(self.severities), "corruption.severities: expected at least one")
        for severity in self.severities:
            within("corruption.severities", severity, 1, 5)


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
