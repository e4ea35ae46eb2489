"""Fused operations of pooling heads: the power mean, a plain reference and its paths for CPUs and GPUs."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

Statistic = Float[Tensor, "batch width"] | None


class Saved(NamedTuple):
    """What a forward pass keeps for the backward pass, besides its input and its result: a few numbers a channel.

    Attributes:
        derivative: ∂y/∂p; None where the exponents need no gradient.
        scale: what the values are relative to, under `shift` P = y - low, under `signed` the largest size; else None.
        other: under `shift` the minimum, under `signed` the slope of the root at the mean power; else None.
    """

    derivative: Statistic
    scale: Statistic
    other: Statistic
