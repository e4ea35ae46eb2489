"""Pooling without trained parameters: `cls`, `avg`, `max`, `avgmax`, `relu_avg`."""

from jaxtyping import Float
from torch import Tensor

from mmrep.config.heads import ReluAvgArgs
from mmrep.pooling.contract import PoolingHead, Tokens, mean_dtype


class ClassToken(PoolingHead):
    """The class token (ViT; Dosovitskiy et al., arXiv 2010.11929)."""

    needs_class_token = True

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return tokens.prefix[:, 0]


class Average(PoolingHead):
    """The mean of the patch tokens, accumulated in fp32."""

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return x.mean(1, dtype=mean_dtype(x)).to(x.dtype)


class Maximum(PoolingHead):
    """The maximum of the patch tokens, channel by channel. It is the limit of a power mean for p → ∞."""

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return tokens.patches.amax(1)


class AverageMaximum(PoolingHead):
    """Half the sum of the mean and the maximum, channel by channel (timm's `avgmax`; mixed pooling with a fixed share:
    Lee et al., arXiv 1509.08985)."""

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return (0.5 * (x.mean(1, dtype=mean_dtype(x)) + x.amax(1))).to(x.dtype)


class ClampedAverage(PoolingHead):
    """The mean of max(x, ε): GeM at p = 1, never trained. It is the control for what clamping alone does."""

    def __init__(self, dim: int, num_heads: int | None, args: ReluAvgArgs) -> None:
        super().__init__(dim, num_heads, args)
        self.eps = args.eps

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return x.clamp(min=self.eps).mean(1, dtype=mean_dtype(x)).to(x.dtype)
