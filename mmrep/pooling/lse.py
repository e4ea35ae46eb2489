"""Log-sum-exp pooling: `lse`."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.pooling.contract import PoolingHead, Tokens, bounded, mean_dtype

MAX_SHARPNESS = 1e4
"""r is kept from 1 / MAX_SHARPNESS to MAX_SHARPNESS; past it the result is the mean or the maximum for fp32."""


class LogSumExp(PoolingHead):
    """y_c = 1/r · log(1/N Σ_n exp(r·x_nc)), one r for all channels (Pinheiro & Collobert, arXiv 1411.6228, sec. 3).

    Between the mean (r → 0) and the maximum (r → ∞). The paper fixes r; here it may be trained.

    Args:
        dim: width of the tokens.
        r: initial sharpness.
        learn: whether it is trained.
        lr_scale: its learning rate over that of the other parameters.
    """

    def __init__(self, dim: int, r: float = 5.0, learn: bool = True, lr_scale: float = 1.0) -> None:
        super().__init__(dim)
        self.lr_scale = lr_scale
        # The logarithm of r is what is learned: r stays positive whatever the optimiser does.
        self.log_sharpness = nn.Parameter(torch.full((1,), math.log(r)), requires_grad=learn)

    def sharpness(self) -> Float[Tensor, "1"]:
        """r, in fp32 or better."""
        return bounded(self.log_sharpness.to(mean_dtype(self.log_sharpness)), math.log(MAX_SHARPNESS)).exp()

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        values = tokens.patches.to(mean_dtype(tokens.patches))
        r = self.sharpness().to(values.dtype)
        # The result does not depend on `top`, which keeps exponentials within (0, 1]. expm1 and log1p keep what
        # torch.logsumexp would cancel for small r: log N against log N.
        top = values.detach().amax(1, keepdim=True)
        mean = torch.expm1(r * (values - top)).mean(1)
        return (top.squeeze(1) + torch.log1p(mean) / r).to(tokens.patches.dtype)

    def lr_scales(self) -> dict[str, float]:
        return {"log_sharpness": self.lr_scale}
