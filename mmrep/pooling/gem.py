"""Generalised-mean pooling: `gem` with one exponent, `ggem` with one for each group of channels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import MAX_EXPONENT, Grouping, Negatives
from mmrep.pooling.contract import PoolingHead, Tokens, mean_dtype


def _power(ratio: Tensor, exponent: Tensor) -> Tensor:
    """mean_n(ratio^p)^(1/p) for ratios in (0, 1]: finite for any p, since the mean is at least 1/N."""
    return ratio.pow(exponent).mean(1).pow(1 / exponent)


def generalized_mean(
    x: Float[Tensor, "batch patches width"],
    exponent: Float[Tensor, " width"],
    eps: float = 1e-6,
    negatives: Negatives = "clamp",
) -> Float[Tensor, "batch width"]:
    """The power mean over patches: y_c = (1/N Σ_n f(x_nc)^p_c)^(1/p_c)  (GeM; Radenović et al., arXiv 1711.02512,
    eq. 3).

    The largest value of a channel is factored out, so that p up to 100 stays within fp32; the result does not
    depend on it.

    Args:
        x: patch tokens.
        exponent: p for each channel, positive.
        eps: floor of clamped values; for `signed`, the relative size of a mean power below which its root is smoothed.
        negatives: `clamp`: f = max(x, ε). `shift`: the channel's minimum is subtracted first and added to the
            result, so that
            p = 1 is the mean. `signed`: the mean of sign(x)·|x|^p, and its sign-preserving root; p = 1 is the mean.

    Returns:
        The pooled channels, in the type of `x`.
    """
    values, p = x.to(mean_dtype(x)), exponent.to(mean_dtype(x))
    tiny = torch.finfo(values.dtype).tiny
    if negatives == "clamp":
        values = values.clamp(min=eps)
        top = values.detach().amax(1, keepdim=True)
        pooled = _power(values / top, p) * top.squeeze(1)
    elif negatives == "shift":
        low = values.amin(1, keepdim=True)
        shifted = values - low
        top = shifted.detach().amax(1, keepdim=True).clamp(min=tiny)
        # The minimum itself has ratio 0, where the gradient of a power below 1 has no bound: a floor keeps it finite.
        pooled = _power((shifted / top).clamp(min=torch.finfo(values.dtype).eps ** 2), p) * top.squeeze(1)
        pooled = pooled + low.squeeze(1)
    else:
        size = values.abs()
        top = size.detach().amax(1, keepdim=True).clamp(min=tiny)
        ratio = (size / top).clamp(min=torch.finfo(values.dtype).eps ** 2)
        mean = (values.sign() * ratio.pow(p)).mean(1)
        # sign(m)|m|^(1/p) has an infinite slope at m = 0; m·(m² + ε²)^((1/p - 1)/2) has not, and is m for p = 1.
        pooled = mean * (mean.square() + eps**2).pow((1 / p - 1) / 2) * top.squeeze(1)
    return pooled.to(x.dtype)


class GeM(PoolingHead):
    """Generalised-mean pooling with one learnable exponent (arXiv 1711.02512)."""

    def __init__(
        self, dim: int, p: float = 3.0, eps: float = 1e-6, negatives: Negatives = "clamp", learn: bool = True
    ) -> None:
        super().__init__(dim)
        self.eps = eps
        self.negatives = negatives
        # The logarithm of p is what is learned: p stays positive whatever the optimiser does.
        self.log_exponent = nn.Parameter(torch.full((self.groups,), math.log(p)), requires_grad=learn)

    @property
    def groups(self) -> int:
        """Number of exponents."""
        return 1

    def exponents(self) -> Float[Tensor, " groups"]:
        """The exponents p, within (0, 100], in fp32."""
        return self.log_exponent.float().clamp(-math.log(MAX_EXPONENT), math.log(MAX_EXPONENT)).exp()

    def channel_exponents(self) -> Float[Tensor, " width"]:
        """The exponent of every channel."""
        return self.exponents().repeat_interleave(self.dim // self.groups)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return generalized_mean(tokens.patches, self.channel_exponents(), self.eps, self.negatives)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={self.groups}, eps={self.eps}, negatives={self.negatives}"


class GGeM(GeM):
    """Group generalised-mean pooling: a learnable exponent for each group of channels (Ko et al., arXiv 2212.04114).

    Args:
        dim: width of the tokens.
        groups: number of groups, a divisor of `dim`; None: `num_heads`.
        num_heads: attention heads of the trunk, the default of `groups`.
        p: initial exponent.
        eps: see `generalized_mean`.
        negatives: see `generalized_mean`.
        learn: whether the exponents are trained.
        grouping: `contiguous` slices, or a fixed `random` partition of the channels.
        grouping_seed: seed of that partition.

    Raises:
        ConfigError: neither `groups` nor `num_heads` given, or `groups` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        groups: int | None = None,
        num_heads: int | None = None,
        p: float = 3.0,
        eps: float = 1e-6,
        negatives: Negatives = "clamp",
        learn: bool = True,
        grouping: Grouping = "contiguous",
        grouping_seed: int = 0,
    ) -> None:
        groups = groups or num_heads
        if groups is None:
            raise ConfigError("pool 'ggem': give groups (a divisor of dim), or num_heads to take it from")
        if dim % groups:
            divisors = [d for d in range(1, dim + 1) if dim % d == 0]
            raise ConfigError(
                f"pool 'ggem': groups must divide the trunk's width {dim}, got {groups}; divisors: {divisors}"
            )
        self._groups = groups
        super().__init__(dim, p, eps, negatives, learn)
        order = torch.arange(dim)
        if grouping == "random":
            order = torch.randperm(dim, generator=torch.Generator().manual_seed(grouping_seed))
        self.register_buffer("group_of_channel", order // (dim // groups))
        self.group_of_channel: Tensor

    @property
    def groups(self) -> int:
        return self._groups

    def channel_exponents(self) -> Float[Tensor, " width"]:
        return self.exponents()[self.group_of_channel]
