"""The power mean on CPUs, computed over blocks of the batch that stay in the second-level cache.

Plain PyTorch (`reference.py`) takes 8 times as long (benchmarks/pooling.py): each of its intermediate results goes
through memory, and `pow` takes six times as long as exp(p·log r), since exp and log are vectorised.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mmrep.config.heads import Negatives
from mmrep.pooling.contract import mean_dtype
from mmrep.pooling.kernels import Saved, Statistic

BLOCK_BYTES = 640 * 1024
"""Size of a block for each core. A block and its workspaces together fit a second-level cache of 2 MB."""

Values = Float[Tensor, "block patches width"]
Row = Float[Tensor, "block 1 width"]


def forward(
    x: Float[Tensor, "batch patches width"],
    p: Float[Tensor, " width"],
    eps: float,
    negatives: Negatives,
    derivative: bool,
) -> tuple[Float[Tensor, "batch width"], Saved]:
    """Return the power mean and what its gradient needs.

    With r the ratios to the largest value t: log y = log t + log(M)/p, M = mean_n r^p, and
    ∂y/∂p = y (mean_n(r^p log r) / M - log(M)/p)/p, so that no second pass is needed for the exponents.

    Args:
        x: patch tokens of any strides; only read.
        p: positive exponent of each channel.
        eps: see `mmrep.pooling.gem.generalized_mean`.
        negatives: see `mmrep.pooling.gem.generalized_mean`.
        derivative: compute ∂y/∂p.
    """
    p = p.to(mean_dtype(x))
    found = [_mean_powers(tokens.to(p.dtype), p, eps, negatives, derivative) for tokens in _blocks(x, x)]
    top, mean, moment, low = (None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True))
    assert top is not None and mean is not None, "only the last two statistics are optional"
    if negatives == "signed":
        return _signed_root(top, mean, moment, p, eps)
    log_mean = mean.log().div_(p)
    pooled = log_mean.exp().mul_(top)
    gradient = None if moment is None else (moment / mean).sub_(log_mean).mul_(pooled).div_(p)
    if low is None:
        return pooled, Saved(gradient, None, None)
    return pooled + low, Saved(gradient, pooled, low)


def _blocks(x: Tensor, split: Tensor) -> Iterator[Tensor]:
    """Yield `split` in blocks of whole images. The tokens `x` decide the block size; off the CPU there is one block."""
    image = max(1, x.shape[1] * x.shape[2] * mean_dtype(x).itemsize)
    step = BLOCK_BYTES * torch.get_num_threads() // image if x.device.type == "cpu" else len(x)
    yield from split.split(max(1, min(step, len(x))))


def _mean_powers(
    tokens: Values, p: Tensor, eps: float, negatives: Negatives, derivative: bool
) -> tuple[Tensor, Tensor, Statistic, Statistic]:
    """Return statistics of each channel of a block, of shape (block, width).

    Returns:
        The largest value t; the mean of r^p; the mean of r^p log r, or None without `derivative`; the minimum under
        `shift`, else None.
    """
    low = tokens.amin(1, keepdim=True) if negatives == "shift" else None
    values = _values(tokens, low, negatives)
    top = values.amax(1, keepdim=True)
    top.clamp_(min=eps if negatives == "clamp" else torch.finfo(p.dtype).tiny)
    inverse = top.reciprocal()
    ratios = torch.mul(values, inverse, out=None if values is tokens else values)
    logs = torch.maximum(ratios, _least_ratio(inverse, p, eps, negatives, _limit(p.dtype)), out=ratios).log_()
    powers = logs.mul(p).exp_()
    if negatives == "signed":
        powers.mul_(tokens.sign())
    mean = powers.mean(1)
    moment = powers.mul_(logs).mean(1) if derivative else None
    return top.squeeze(1), mean, moment, None if low is None else low.squeeze(1)


def _values(tokens: Values, low: Row | None, negatives: Negatives) -> Values:
    """Return what is raised to the power, before its floor: the tokens, `tokens - low`, or their sizes."""
    if negatives == "clamp":
        return tokens
    return tokens.abs() if low is None or negatives == "signed" else tokens - low


def _limit(dtype: torch.dtype) -> float:
    """Return the limit that keeps powers within exp(±limit).

    Past it, near-denormal numbers make exp and log a hundred times slower.
    """
    return 80.0 if dtype == torch.float32 else 700.0


def _floor_ratio(dtype: torch.dtype) -> float:
    """Return the smallest ratio used under `shift` and `signed`; see `reference.power_mean`."""
    return torch.finfo(dtype).eps ** 2


def _least_ratio(inverse: Tensor, exponent: Tensor, eps: float, negatives: Negatives, limit: float) -> Tensor:
    """Return the smallest ratio that is raised to the power, for each channel.

    It is ε relative to the largest value under `clamp`, else `_floor_ratio`; and never so small that its power falls
    below exp(-limit), which is nothing compared with the largest power, 1.
    """
    floor = inverse * eps if negatives == "clamp" else torch.full_like(inverse, _floor_ratio(exponent.dtype))
    return torch.maximum(floor, torch.exp(-limit / exponent.abs()).clamp_(min=torch.finfo(exponent.dtype).tiny))


def _signed_root(top: Tensor, mean: Tensor, moment: Statistic, p: Tensor, eps: float) -> tuple[Tensor, Saved]:
    """Return the smoothed root m·(m² + ε²)^((1/p - 1)/2) of the mean power m, times the largest size."""
    square = mean.square().add_(eps**2)
    bend = 1 / p - 1
    root = square.pow(bend / 2)
    slope = root * (1 + bend * mean.square() / square)
    gradient = None
    if moment is not None:
        gradient = top * (slope * moment - mean * root * square.log() / (2 * p.square()))
    return mean * root * top, Saved(gradient, top, slope)


def backward(
    grad: Float[Tensor, "batch width"],
    x: Float[Tensor, "batch patches width"],
    p: Float[Tensor, " width"],
    pooled: Float[Tensor, "batch width"],
    saved: Saved,
    eps: float,
    negatives: Negatives,
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, "batch patches width"] | None, Float[Tensor, " width"] | None]:
    """Return the gradients of the tokens (contiguous, in their type) and of the exponents.

    ∂y/∂x_n = (x_n/y)^(p-1) / N, and 0 where x_n ≤ ε. Under `shift` the formula holds for x - low and y - low, and the
    rest of the gradient goes to the minimum. Under `signed` it is slope · p · (|x_n|/t)^(p-1) / N.

    Args:
        grad: gradient of the result.
        x: as passed to `forward`.
        p: as passed to `forward`.
        pooled: the result of `forward`.
        saved: what `forward` kept.
        eps: as passed to `forward`.
        negatives: as passed to `forward`.
        wanted: whether to compute the gradient of x and that of p; one that is not wanted is None.
    """
    exponents = exponent_gradient(grad, saved, p) if wanted[1] else None
    if not wanted[0]:
        return None, exponents
    p, grad = p.to(mean_dtype(x)), grad.to(mean_dtype(x))
    inverse = (pooled if saved.scale is None else saved.scale.clamp(min=torch.finfo(p.dtype).tiny)).reciprocal()
    # A power times a small gradient must not become denormal either: hence less than the forward pass's limit.
    least = _least_ratio(inverse, p - 1, eps, negatives, 0.6 * _limit(p.dtype))
    other = grad if saved.other is None else saved.other
    factor = grad / x.shape[1]
    if negatives == "signed":
        factor = factor * other * p
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = (each.unsqueeze(1) for each in (inverse, least, factor, other, grad))
    for out, tokens, *statistics in zip(*(_blocks(x, each) for each in (gradient, x, *rows)), strict=True):
        _write_gradient(out, tokens.to(p.dtype), p, tuple(statistics), eps, negatives)
    return gradient, exponents


def exponent_gradient(grad: Tensor, saved: Saved, p: Tensor) -> Tensor:
    """Return the gradient of the exponents from ∂y/∂p, which the forward pass kept."""
    assert saved.derivative is not None, "the forward pass was told that the exponents need no gradient"
    return (grad * saved.derivative).sum(0).to(p.dtype)


def _write_gradient(
    out: Tensor, tokens: Values, p: Tensor, statistics: tuple[Row, ...], eps: float, negatives: Negatives
) -> None:
    """Write the gradient of a block's tokens to `out`.

    Args:
        out: the block of the gradient, in the type of the tokens as they came.
        tokens: the block in the type that is accumulated in.
        p: the exponents.
        statistics: of each channel: 1 / what the values are relative to, the least ratio, the gradient of a value with
            ratio 1, the minimum (used under `shift` only), the gradient of the result.
        eps: as in `backward`.
        negatives: as in `backward`.
    """
    inverse, least, factor, low, grad = statistics
    values = _values(tokens, low, negatives)
    # In place where the types agree: a fresh tensor of the gradient's size would cost a pass over memory.
    slopes = torch.mul(values, inverse, out=out if out.dtype == p.dtype else None)
    bounded = values if negatives == "clamp" else slopes.clone()
    torch.maximum(slopes, least, out=slopes).log_().mul_(p - 1).exp_().mul_(factor)
    # Zero the slopes of values at or below the bound, but not those of NaN.
    bound = eps if negatives == "clamp" else _floor_ratio(p.dtype)
    torch.ops.aten.threshold_backward.grad_input(slopes, bounded, bound, grad_input=slopes)
    if negatives == "shift":
        # The minimum gets what the slopes leave of the gradient, in equal parts where it occurs several times.
        lowest = torch.eq(values, 0, out=values)
        rest = grad - slopes.sum(1, keepdim=True)
        slopes.addcmul_(lowest, rest / lowest.sum(1, keepdim=True))
    if slopes is not out:
        out.copy_(slopes)
