"""Generalised-mean pooling: `gem` with one exponent, `ggem` with one for each group of channels."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import MAX_EXPONENT, Grouping, Negatives
from mmrep.pooling.contract import PoolingHead, Tokens, bounded
from mmrep.pooling.kernels.operation import power_mean


def generalized_mean(
    x: Float[Tensor, "batch patches width"],
    exponent: Float[Tensor, " width"],
    eps: float = 1e-6,
    negatives: Negatives = "clamp",
) -> Float[Tensor, "batch width"]:
    """The power mean over patches: y_c = (1/N Σ_n f(x_nc)^p_c)^(1/p_c)  (GeM; Radenović et al., arXiv 1711.02512,
    eq. 3).

    One operation with its own backward (`kernels.operation`); `kernels.reference` is the same in plain PyTorch. The
    largest value of a channel is factored out, so that p up to 100 stays within fp32; the result does not depend on it.

    Args:
        x: patch tokens.
        exponent: p for each channel, positive.
        eps: floor of clamped values; for `signed`, the relative size of a mean power below which its root is smoothed.
        negatives: `clamp`: f = max(x, ε). `shift`: the channel's minimum is subtracted first and added to the
            result, so that p = 1 is the mean. `signed`: the mean of sign(x)·|x|^p, and its sign-preserving root; p = 1
            is the mean.

    Returns:
        The pooled channels, in the type of `x`.
    """
    return power_mean(x, exponent, eps, negatives).to(x.dtype)


class GGeM(PoolingHead):
    """Group generalised-mean pooling: a learnable exponent for each group of channels (Ko et al., arXiv 2212.04114).

    Args:
        dim: width of the tokens.
        groups: number of groups, a divisor of `dim`; `channel`: as many as channels; None: `num_heads`.
        num_heads: attention heads of the trunk, the default of `groups`.
        p: initial exponent.
        eps: see `generalized_mean`.
        negatives: see `generalized_mean`.
        learn: whether the exponents are trained.
        lr_scale: learning rate of the exponents over that of the other parameters.
        grouping: `contiguous` slices, or a fixed `random` partition of the channels.
        grouping_seed: seed of that partition.

    Raises:
        ConfigError: neither `groups` nor `num_heads` given, or `groups` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        groups: int | Literal["channel"] | None = None,
        num_heads: int | None = None,
        p: float = 3.0,
        eps: float = 1e-6,
        negatives: Negatives = "clamp",
        learn: bool = True,
        lr_scale: float = 1.0,
        grouping: Grouping = "contiguous",
        grouping_seed: int = 0,
    ) -> None:
        super().__init__(dim)
        self.groups = dim if groups == "channel" else groups or num_heads or 0
        if not self.groups:
            raise ConfigError("pool 'ggem': give groups (a divisor of dim), or num_heads to take it from")
        if dim % self.groups:
            divisors = [d for d in range(1, dim + 1) if dim % d == 0]
            raise ConfigError(
                f"pool 'ggem': groups must divide the trunk's width {dim}, got {self.groups}; divisors: {divisors}"
            )
        self.eps = eps
        self.negatives: Negatives = negatives
        self.lr_scale = lr_scale
        # The logarithm of p is what is learned: p stays positive whatever the optimiser does.
        self.log_exponent = nn.Parameter(torch.full((self.groups,), math.log(p)), requires_grad=learn)
        order = torch.arange(dim)
        if grouping == "random":
            order = torch.randperm(dim, generator=torch.Generator().manual_seed(grouping_seed))
        # With one group there is nothing to keep.
        self.register_buffer("group_of_channel", order // (dim // self.groups), persistent=self.groups > 1)
        self.group_of_channel: Tensor

    def exponents(self) -> Float[Tensor, " groups"]:
        """The exponents p, within [0.01, 100], in fp32."""
        return bounded(self.log_exponent.float(), math.log(MAX_EXPONENT)).exp()

    def channel_exponents(self) -> Float[Tensor, " width"]:
        """The exponent of every channel."""
        return self.exponents()[self.group_of_channel]

    @torch.no_grad()
    def set_exponents(self, p: float) -> None:
        """Sets all exponents to one value within [0.01, 100]."""
        self.log_exponent.fill_(math.log(p))

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return generalized_mean(tokens.patches, self.channel_exponents(), self.eps, self.negatives)

    def lr_scales(self) -> dict[str, float]:
        return {"log_exponent": self.lr_scale}

    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={self.groups}, eps={self.eps}, negatives={self.negatives}"


class GeM(GGeM):
    """Generalised-mean pooling with one learnable exponent (arXiv 1711.02512); arguments as in `GGeM`."""

    def __init__(
        self,
        dim: int,
        p: float = 3.0,
        eps: float = 1e-6,
        negatives: Negatives = "clamp",
        learn: bool = True,
        lr_scale: float = 1.0,
    ) -> None:
        super().__init__(dim, 1, p=p, eps=eps, negatives=negatives, learn=learn, lr_scale=lr_scale)


def exponents_of(head: nn.Module) -> Float[Tensor, " exponents"] | None:
    """The exponents of all power means in a head, in fp32; None where it has none."""
    found = [module.exponents().detach() for module in head.modules() if isinstance(module, GGeM)]
    return torch.cat(found) if found else None
