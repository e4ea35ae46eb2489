"""The config of the loss."""

import typing
from dataclasses import dataclass
from typing import Literal

from mmrep.config.checks import above, one_of, require

Kind = Literal["infonce", "sigmoid"]
Duplicates = Literal["auto", "mask", "positive", "negative"]


@dataclass(frozen=True)
class LossConfig:
    """The contrastive loss and, for heads with a mean token (mcap, mmcap), token distillation:
    (1 − λ)·contrastive + λτ²·KL(teacher ‖ student).

    Attributes:
        kind: The contrastive loss: infonce (CLIP) or sigmoid (SigLIP).
        duplicates: Treatment of pairs off the diagonal that share a caption or class: mask leaves them out,
            positive counts them as matches, negative does not. auto masks them where captions come from classes,
            and takes them as negatives elsewhere.
        max_logit_scale: Largest temperature factor. It is clamped after every step.
        distill_weight: Weight λ of the token distillation, for heads with a mean token.
        distill_temperature: Temperature τ of the token distillation, for heads with a mean token.
        detach_teacher: Whether gradients of the distillation reach the mean token only, and not the tokens that
            teach it.
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
