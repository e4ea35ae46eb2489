"""Generalised-mean pooling: `gem` with one exponent, `ggem` with one for each group of channels."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.heads import MAX_EXPONENT, GeMArgs, GGeMArgs, Negatives
from mmrep.pooling.contract import PoolingHead, Tokens, bounded
from mmrep.pooling.kernels.operation import power_mean


def generalized_mean(
    x: Float[Tensor, "batch patches width"],
    exponent: Float[Tensor, " width"],
    eps: float = 1e-6,
    negatives: Negatives = "clamp",
) -> Float[Tensor, "batch width"]:
    """Return the power mean over patches (GeM; Radenović et al., arXiv 1711.02512, eq. 3):

        y_c = (1/N Σ_n f(x_nc)^p_c)^(1/p_c)

    It is one operation with its own backward pass (`kernels.operation`); `kernels.reference` is the same in plain
    PyTorch. The largest value of a channel is factored out, so that powers up to p = 100 stay within fp32. The result
    does not depend on that factor.

    Args:
        x: patch tokens.
        exponent: p for each channel, positive.
        eps: floor of clamped values; for `signed`, the relative size of a mean power below which its root is smoothed.
        negatives: treatment of negative values. `clamp`: f = max(x, ε). `shift`: the channel's minimum is subtracted
            first and added to the result. `signed`: the mean of sign(x)·|x|^p, and its sign-preserving root. With
            `shift` and `signed`, p = 1 is the mean.

    Returns:
        The pooled channels, in the dtype of `x`.
    """
    return power_mean(x, exponent, eps, negatives).to(x.dtype)


class GGeM(PoolingHead):
    """Group generalised-mean pooling: a learnable exponent for each group of channels (Ko et al., arXiv 2212.04114).

    `gem` is the same with one group (arXiv 1711.02512).

    Raises:
        ConfigError: neither `args.groups` nor `num_heads` is given, or the number of groups does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int | None, args: GeMArgs) -> None:
        super().__init__(dim, num_heads, args)
        grouped = args if isinstance(args, GGeMArgs) else GGeMArgs(groups=1)
        self.groups = dim if grouped.groups == "channel" else grouped.groups or num_heads or 0
        if not self.groups:
            raise ConfigError("give groups (a divisor of dim), or num_heads to take it from")
        if dim % self.groups:
            divisors = [d for d in range(1, dim + 1) if dim % d == 0]
            raise ConfigError(f"groups must divide the trunk's width {dim}, got {self.groups}; divisors: {divisors}")
        self.eps = args.eps
        self.negatives = args.negatives
        self.lr_scale = args.lr_scale
        # The parameter is log p, so that p stays positive whatever the optimiser does.
        self.log_exponent = nn.Parameter(torch.full((self.groups,), math.log(args.p)), requires_grad=args.learn)
        order = torch.arange(dim)
        if grouped.grouping == "random":
            order = torch.randperm(dim, generator=torch.Generator().manual_seed(grouped.grouping_seed))
        # A checkpoint holds the partition, except with one group, where there is nothing to hold.
        self.register_buffer("group_of_channel", order // (dim // self.groups), persistent=self.groups > 1)
        self.group_of_channel: Tensor

    def exponents(self) -> Float[Tensor, " groups"]:
        """Return the exponents p in fp32, clamped to [0.01, 100]."""
        return bounded(self.log_exponent.float(), math.log(MAX_EXPONENT)).exp()

    def channel_exponents(self) -> Float[Tensor, " width"]:
        """Return the exponent of every channel."""
        return self.exponents()[self.group_of_channel]

    @torch.no_grad()
    def set_exponents(self, p: float) -> None:
        """Set all exponents to one value from 0.01 to 100."""
        self.log_exponent.fill_(math.log(p))

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return generalized_mean(tokens.patches, self.channel_exponents(), self.eps, self.negatives)

    def lr_scales(self) -> dict[str, float]:
        return {"log_exponent": self.lr_scale}

    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={self.groups}, eps={self.eps}, negatives={self.negatives}"


def exponents_of(head: nn.Module) -> Float[Tensor, " exponents"] | None:
    """Return the exponents of all power means in a head, in fp32, or None where it has none."""
    found = [module.exponents().detach() for module in head.modules() if isinstance(module, GGeM)]
    return torch.cat(found) if found else None
