"""The power mean in plain PyTorch, differentiated by autograd. The fused implementations are tested against it."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmrep.config.heads import Negatives
from mmrep.pooling.contract import mean_dtype


def _power(ratio: Tensor, exponent: Tensor) -> Tensor:
    """Return mean_n(ratio^p)^(1/p) for ratios in (0, 1]. It is finite for any p, since the mean is at least 1/N.

    The exception is a constant channel under `shift`: all its ratios are at their floor, their powers may underflow,
    and the exponent's gradient would be NaN without the clamp.
    """
    return ratio.pow(exponent).mean(1).clamp(min=torch.finfo(ratio.dtype).tiny).pow(1 / exponent)


def power_mean(
    x: Float[Tensor, "batch patches width"],
    exponent: Float[Tensor, " width"],
    eps: float,
    negatives: Negatives,
) -> Float[Tensor, "batch width"]:
    """Return the power mean that `mmrep.pooling.gem.generalized_mean` defines, in the type it is accumulated in."""
    values, p = x.to(mean_dtype(x)), exponent.to(mean_dtype(x))
    tiny = torch.finfo(values.dtype).tiny
    if negatives == "clamp":
        # Not `clamp`: its gradient at the bound itself depends on the version of torch.
        values = torch.nn.functional.threshold(values, eps, eps)
        top = values.detach().amax(1, keepdim=True)
        return _power(values / top, p) * top.squeeze(1)
    if negatives == "shift":
        low = values.amin(1, keepdim=True)
        shifted = values - low
        top = shifted.detach().amax(1, keepdim=True).clamp(min=tiny)
        # The minimum itself has ratio 0, where the gradient of a power below 1 is infinite. A floor keeps it finite.
        pooled = _power((shifted / top).clamp(min=torch.finfo(values.dtype).eps ** 2), p) * top.squeeze(1)
        return pooled + low.squeeze(1)
    size = values.abs()
    top = size.detach().amax(1, keepdim=True).clamp(min=tiny)
    ratio = (size / top).clamp(min=torch.finfo(values.dtype).eps ** 2)
    mean = (values.sign() * ratio.pow(p)).mean(1)
    # sign(m)|m|^(1/p) has an infinite slope at m = 0. This formula has a finite slope there, and equals m for p = 1.
    return mean * (mean.square() + eps**2).pow((1 / p - 1) / 2) * top.squeeze(1)
