"""The power mean as a fused operation: a plain reference, and implementations for CPUs and GPUs."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

Statistic = Float[Tensor, "batch width"] | None


class Saved(NamedTuple):
    """The statistics of each channel that the backward pass needs besides the input and the result.

    Attributes:
        derivative: ∂y/∂p; None if the exponents need no gradient.
        scale: the value that the others are divided by: y - low under `shift`, the largest size under `signed`, None
            under `clamp`.
        other: the minimum under `shift`, the slope of the root at the mean power under `signed`, None under `clamp`.
    """

    derivative: Statistic
    scale: Statistic
    other: Statistic
