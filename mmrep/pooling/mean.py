"""Pooling without parameters over the patches: `avg`, `max`, `avgmax`, `relu_avg`."""

from jaxtyping import Float
from torch import Tensor

from mmrep.pooling.contract import PoolingHead, Tokens, mean_dtype


class Average(PoolingHead):
    """The mean of the patch tokens, accumulated in fp32."""

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return x.mean(1, dtype=mean_dtype(x)).to(x.dtype)


class Maximum(PoolingHead):
    """The maximum of the patch tokens, channel by channel; the limit of a power mean for p → ∞."""

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return tokens.patches.amax(1)


class AverageMaximum(PoolingHead):
    """Half the sum of the mean and the maximum, channel by channel (timm's `avgmax`; mixed pooling with a fixed share:
    Lee et al., arXiv 1509.08985)."""

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return (0.5 * (x.mean(1, dtype=mean_dtype(x)) + x.amax(1))).to(x.dtype)


class ClampedAverage(PoolingHead):
    """The mean of max(x, ε): GeM at p = 1, never trained. The control for what clamping alone does."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim)
        self.eps = eps

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return x.clamp(min=self.eps).mean(1, dtype=mean_dtype(x)).to(x.dtype)
