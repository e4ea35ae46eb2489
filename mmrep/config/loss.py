"""The loss: contrastive, and the distillation of heads with auxiliary embeddings."""

import typing
from dataclasses import dataclass
from typing import Literal

from mmrep.config.checks import above, one_of, require

Kind = Literal["infonce", "sigmoid"]
Duplicates = Literal["auto", "mask", "positive", "negative"]


@dataclass(frozen=True)
class LossConfig:
    """The contrastive loss, and for heads with a mean token (`mcap`, `mmcap` with `distill`) the token distillation:
    (1 − λ)·contrastive + λτ²·KL(teacher ‖ student).

    Attributes:
        kind: `infonce` (CLIP) or `sigmoid` (SigLIP).
        duplicates: pairs of one group off the diagonal: left out (`mask`), matches (`positive`), or not (`negative`);
            `auto` masks them where captions come from `cls` and takes them as negatives elsewhere.
        max_logit_scale: the temperature factor is clamped to this after every step.
        distill_weight: λ, used only by heads with a mean token.
        distill_temperature: τ, used only by heads with a mean token.
        detach_teacher: whether the mean token learns from the others without their learning from it; used only by
            heads with a mean token.
    """

    kind: Kind = "infonce"
    duplicates: Duplicates = "auto"
    max_logit_scale: float = 100.0
    distill_weight: float = 0.5
    distill_temperature: float = 1.0
    detach_teacher: bool = True

    def __post_init__(self) -> None:
        one_of("loss.kind", self.kind, typing.get_args(Kind))
        one_of("loss.duplicates", self.duplicates, typing.get_args(Duplicates))
        above("loss.max_logit_scale", self.max_logit_scale, 1)
        require(
            0 < self.distill_weight < 1,
            f"loss.distill_weight: expected a value between 0 and 1, got {self.distill_weight}; "
            "the head's distill: false leaves the distillation out",
        )
        above("loss.distill_temperature", self.distill_temperature, 0)
