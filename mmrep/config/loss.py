"""The contrastive loss."""

import typing
from dataclasses import dataclass
from typing import Literal

from mmrep.config.checks import above, one_of

Kind = Literal["infonce", "sigmoid"]
Duplicates = Literal["auto", "mask", "positive", "negative"]


@dataclass(frozen=True)
class LossConfig:
    """The contrastive loss.

    Attributes:
        kind: `infonce` (CLIP) or `sigmoid` (SigLIP).
        duplicates: pairs of one group off the diagonal: left out (`mask`), matches (`positive`), or not (`negative`);
            `auto` masks them where captions come from `cls` and takes them as negatives elsewhere.
        max_logit_scale: the temperature factor is clamped to this after every step.
    """

    kind: Kind = "infonce"
    duplicates: Duplicates = "auto"
    max_logit_scale: float = 100.0

    def __post_init__(self) -> None:
        one_of("loss.kind", self.kind, typing.get_args(Kind))
        one_of("loss.duplicates", self.duplicates, typing.get_args(Duplicates))
        above("loss.max_logit_scale", self.max_logit_scale, 1)
