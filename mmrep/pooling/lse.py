"""Log-sum-exp pooling: `lse`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.heads import LogSumExpArgs
from mmrep.pooling.contract import PoolingHead, Tokens, bounded, mean_dtype

MAX_SHARPNESS = 1e4
"""r is clamped to [1/MAX_SHARPNESS, MAX_SHARPNESS]. Beyond, fp32 cannot tell the result from mean or maximum."""


class LogSumExp(PoolingHead):
    """y_c = 1/r · log(1/N Σ_n exp(r·x_nc)), one r for all channels (Pinheiro & Collobert, arXiv 1411.6228, sec. 3).

    It lies between the mean (r → 0) and the maximum (r → ∞). The paper fixes r; here it may be trained.
    """

    def __init__(self, dim: int, num_heads: int | None, args: LogSumExpArgs) -> None:
        super().__init__(dim, num_heads, args)
        self.lr_scale = args.lr_scale
        # The parameter is log r, so that r stays positive whatever the optimiser does.
        self.log_sharpness = nn.Parameter(torch.full((1,), math.log(args.r)), requires_grad=args.learn)

    def sharpness(self) -> Float[Tensor, "1"]:
        """Return r in fp32, or in fp64 for an fp64 parameter."""
        return bounded(self.log_sharpness.to(mean_dtype(self.log_sharpness)), math.log(MAX_SHARPNESS)).exp()

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        values = tokens.patches.to(mean_dtype(tokens.patches))
        r = self.sharpness().to(values.dtype)
        # Subtracting `top` keeps the exponentials within (0, 1] and does not change the result. expm1 and log1p keep
        # the digits that torch.logsumexp cancels for small r, where it subtracts log N from log N.
        top = values.detach().amax(1, keepdim=True)
        mean = torch.expm1(r * (values - top)).mean(1)
        return (top.squeeze(1) + torch.log1p(mean) / r).to(tokens.patches.dtype)

    def lr_scales(self) -> dict[str, float]:
        return {"log_sharpness": self.lr_scale}
