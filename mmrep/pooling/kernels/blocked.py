"""The power mean on CPUs: blocks of the batch that stay in the cache, in-place operations on a small workspace.

Powers are exp(p·log r), since both functions are vectorised, and `pow` takes six times as long as the two together.
Backward, and forward where p is moderate, a block is read from memory once; the gradient is written once.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmrep.config.heads import Negatives
from mmrep.pooling.contract import mean_dtype
from mmrep.pooling.kernels import Saved

BLOCK_BYTES = 640 * 1024
"""A core's share of a block: with the workspaces beside it, it fits a second-level cache of 2 MB."""

Values = Float[Tensor, "block patches width"]
Row = Float[Tensor, "block 1 width"]


class _Blocks:
    """A batch in blocks of whole images, with room for the intermediate values of one; one block on other devices.

    Args:
        x: the tokens.
    """

    def __init__(self, x: Tensor) -> None:
        self.x, self.dtype = x, mean_dtype(x)
        size = max(1, x.shape[1] * x.shape[2] * self.dtype.itemsize)
        step = BLOCK_BYTES * torch.get_num_threads() // size if x.device.type == "cpu" else x.shape[0]
        self.step = max(1, min(step, x.shape[0]))
        self._room: dict[str, Tensor] = {}

    def room(self, name: str, count: int) -> Values:
        """Room of a name for as many images, with what it held before."""
        if name not in self._room:
            self._room[name] = self.x.new_empty((self.step, *self.x.shape[1:]), dtype=self.dtype)
        return self._room[name][:count]

    def __iter__(self) -> Iterator[Values]:
        """The blocks in the type to accumulate in: views where the tokens have it."""
        for block in self.x.split(self.step):
            yield block if block.dtype == self.dtype else self.room("load", len(block)).copy_(block)

    def rows(self, statistic: Tensor) -> tuple[Row, ...]:
        """A statistic of shape (batch, width), block by block."""
        return statistic.unsqueeze(1).split(self.step)


def _limit(dtype: torch.dtype) -> float:
    """Powers are kept within exp(±limit): past it, near-denormal numbers make exp and log a hundred times slower."""
    return 80.0 if dtype == torch.float32 else 700.0


def _least_ratio(exponent: Tensor, limit: float) -> Tensor:
    """The ratio below which its power is taken as exp(-limit): nothing beside the largest, which has power 1."""
    return torch.exp(-limit / exponent.abs()).clamp_(min=torch.finfo(exponent.dtype).tiny)


def _floor_ratio(dtype: torch.dtype) -> float:
    """Under `shift` and `signed`, ratios are taken as no less than this: see `reference.power_mean`."""
    return torch.finfo(dtype).eps ** 2


class _Sums(NamedTuple):
    """What a forward pass finds of each channel, of shape (batch, width).

    Attributes:
        top: what the ratios are relative to: the largest value, or 1.
        mean: mean of the ratios' powers.
        moment: mean of these × the ratios' logarithms; None where no derivative is wanted.
        low: under `shift`, the minimum, which the values are taken from; else None.
    """

    top: Tensor
    mean: Tensor
    moment: Tensor | None
    low: Tensor | None


def forward(
    x: Float[Tensor, "batch patches width"],
    p: Float[Tensor, " width"],
    eps: float,
    negatives: Negatives,
    derivative: bool,
) -> tuple[Float[Tensor, "batch width"], Saved]:
    """The power mean, and what its gradient needs.

    With r the ratios to the largest value t: log y = log t + log(M)/p, M = mean_n r^p, and
    ∂y/∂p = y (mean_n(r^p log r) / M - log(M)/p)/p, so that no second pass is needed for the exponents.

    Args:
        x: patch tokens, of any strides; read only.
        p: exponent of each channel, positive.
        eps: see `mmrep.pooling.gem.generalized_mean`.
        negatives: likewise.
        derivative: whether ∂y/∂p is wanted.
    """
    p = p.to(mean_dtype(x))
    limit, sums = _limit(p.dtype), None
    plain = negatives == "clamp" and x.device.type == "cpu" and len(x) > 0
    if plain and float(p.max()) * abs(math.log(eps)) < limit:
        # With such exponents no value is too small for its plain power; whether one was too large is seen afterwards.
        sums = _mean_powers(x, p, eps, negatives, derivative, factored=False)
        low, high = sums.mean.aminmax()
        if not (math.exp(-limit) < float(low) and float(high) < math.exp(limit)):
            sums = None
    if sums is None:
        sums = _mean_powers(x, p, eps, negatives, derivative, factored=True)
    if negatives == "signed":
        return _signed_root(sums, p, eps)
    log_mean = sums.mean.log().div_(p)
    pooled = log_mean.exp().mul_(sums.top)
    gradient = None
    if sums.moment is not None:
        gradient = (sums.moment / sums.mean).sub_(log_mean).mul_(pooled).div_(p)
    if sums.low is None:
        return pooled, Saved(gradient, None, None)
    return pooled + sums.low, Saved(gradient, pooled, sums.low)


def _mean_powers(x: Tensor, p: Tensor, eps: float, negatives: Negatives, derivative: bool, factored: bool) -> _Sums:
    """The means of powers, of the ratios to the largest value (`factored`) or of clamped values themselves."""
    blocks = _Blocks(x)
    low, top = _extremes(x, p.dtype, eps, negatives) if factored else (None, torch.ones_like(x[:, 0], dtype=p.dtype))
    inverse = top.reciprocal()
    floor = inverse * eps if negatives == "clamp" else torch.full_like(inverse, _floor_ratio(p.dtype))
    floor = torch.maximum(floor, _least_ratio(p, _limit(p.dtype)))
    total, moment = torch.empty_like(top), torch.empty_like(top)
    rows = zip(*(blocks.rows(row) for row in (inverse, floor, total, moment)), strict=True)
    lows = blocks.rows(low) if low is not None else None
    for i, (tokens, (inverses, floors, totals, moments)) in enumerate(zip(blocks, rows, strict=True)):
        logs = values = blocks.room("logs", len(tokens))
        if not factored:
            torch.clamp(tokens, min=eps, out=values)
        else:
            if lows is not None:
                torch.sub(tokens, lows[i], out=values)
            elif negatives == "signed":
                torch.abs(tokens, out=values)
            torch.mul(tokens if negatives == "clamp" else values, inverses, out=values)
            torch.maximum(values, floors, out=values)
        powers = torch.mul(logs.log_(), p, out=blocks.room("powers", len(tokens))).exp_()
        if negatives == "signed":
            powers.mul_(tokens.sign())
        torch.sum(powers, 1, keepdim=True, out=totals)
        if derivative:
            torch.sum(powers.mul_(logs), 1, keepdim=True, out=moments)
    return _Sums(top, total.div_(x.shape[1]), moment.div_(x.shape[1]) if derivative else None, low)


def _extremes(x: Tensor, dtype: torch.dtype, eps: float, negatives: Negatives) -> tuple[Tensor | None, Tensor]:
    """The minimum under `shift`, else None, and the largest of the values that are raised to the power."""
    if negatives == "clamp":
        return None, x.amax(1).to(dtype).clamp_(min=eps)
    low, high = (extreme.to(dtype) for extreme in x.aminmax(dim=1))
    top = high - low if negatives == "shift" else torch.maximum(high, -low)
    return low if negatives == "shift" else None, top.clamp_(min=torch.finfo(dtype).tiny)


def _signed_root(sums: _Sums, p: Tensor, eps: float) -> tuple[Tensor, Saved]:
    """The smoothed root m·(m² + ε²)^((1/p - 1)/2) of a mean power m, times the largest size, and what is kept."""
    top, mean, moment, _ = sums
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
    """Gradients of the tokens (contiguous, in their type) and of the exponents.

    ∂y/∂x_n = (x_n/y)^(p-1) / N, 0 where x_n ≤ ε; under `shift` of x - low and y - low, and what these leave of the
    gradient goes to the minimum; under `signed` slope · p · (|x_n|/t)^(p-1) / N.

    Args:
        grad: gradient of the result.
        x: as given to `forward`.
        p: likewise.
        pooled: its result.
        saved: what it kept.
        eps: as given to `forward`.
        negatives: likewise.
        wanted: whether x's and p's gradients are; those that are not are None.
    """
    exponents = None
    if wanted[1]:
        assert saved.derivative is not None, "the forward pass was told that the exponents need no gradient"
        exponents = (grad * saved.derivative).sum(0).to(p.dtype)
    if not wanted[0]:
        return None, exponents
    p, grad = p.to(mean_dtype(x)), grad.to(mean_dtype(x))
    gradient = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    factor = grad / x.shape[1]
    # Times a small gradient, too, a power must not become denormal: hence less than the forward pass's limit.
    limit = 0.6 * _limit(p.dtype)
    if negatives == "clamp" and x.device.type == "cpu" and len(x) > 0:
        log = pooled.log()
        if float((p - 1).abs().max()) * (abs(math.log(eps)) + float(log.abs().max())) < limit:
            _spread_clamped(gradient, x, p, factor.mul_(log.mul_(1 - p).exp_()), eps)
            return gradient, exponents
    inverse = (pooled if saved.scale is None else saved.scale.clamp(min=torch.finfo(p.dtype).tiny)).reciprocal()
    floor = inverse * eps if negatives == "clamp" else torch.full_like(inverse, _floor_ratio(p.dtype))
    floor = torch.maximum(floor, _least_ratio(p - 1, limit))
    low = grad
    if negatives != "clamp":
        assert saved.other is not None, "all but `clamp` keep a third statistic"
        low, factor = saved.other, factor if negatives == "shift" else factor * saved.other * p
    _spread(gradient, x, p, (inverse, floor, factor, low, grad), eps, negatives)
    return gradient, exponents


def _spread_clamped(gradient: Tensor, x: Tensor, p: Tensor, factor: Tensor, eps: float) -> None:
    """Writes factor · x^(p-1) for x > ε, 0 for others, where such powers are in range."""
    blocks, slope_power = _Blocks(x), p - 1
    for tokens, whole, factors in zip(blocks, gradient.split(blocks.step), blocks.rows(factor), strict=True):
        slopes = whole if whole.dtype == p.dtype else blocks.room("slopes", len(whole))
        torch.clamp(tokens, min=eps, out=slopes).log_().mul_(slope_power).exp_().mul_(factors)
        _zero_below(slopes, tokens, eps)
        if slopes is not whole:
            whole.copy_(slopes)


def _spread(
    gradient: Tensor, x: Tensor, p: Tensor, statistics: tuple[Tensor, ...], eps: float, negatives: Negatives
) -> None:
    """Writes the gradient of the tokens with powers of ratios.

    Args:
        gradient: is written.
        x: the tokens.
        p: the exponents.
        statistics: of each channel: 1 / what the values are relative to, the least ratio, the gradient of a value with
            ratio 1, the minimum (used under `shift`), the gradient of the result.
        eps: see `backward`.
        negatives: likewise.
    """
    blocks, slope_power = _Blocks(x), p - 1
    rows = zip(*(blocks.rows(statistic) for statistic in statistics), strict=True)
    for tokens, whole, row in zip(blocks, gradient.split(blocks.step), rows, strict=True):
        inverse, floor, factor, low, grad = row
        slopes = whole if whole.dtype == p.dtype else blocks.room("slopes", len(whole))
        values = tokens if negatives == "clamp" else blocks.room("values", len(whole))
        if negatives == "shift":
            torch.sub(tokens, low, out=values)
        elif negatives == "signed":
            torch.abs(tokens, out=values)
        torch.mul(values, inverse, out=slopes)
        torch.maximum(slopes, floor, out=slopes).log_().mul_(slope_power).exp_().mul_(factor)
        if negatives == "clamp":
            _zero_below(slopes, values, eps)
        else:
            _zero_below(slopes, values.mul_(inverse), _floor_ratio(p.dtype))
        if negatives == "shift":
            _to_minimum(slopes, values, grad)
        if slopes is not whole:
            whole.copy_(slopes)


def _zero_below(slopes: Values, values: Values, bound: float) -> None:
    """Zeroes, in place, the slopes of values at or below the bound; not of NaN."""
    torch.ops.aten.threshold_backward.grad_input(slopes, values, bound, grad_input=slopes)


def _to_minimum(slopes: Values, values: Values, grad: Row) -> None:
    """Adds, in place, what the slopes leave of the gradient to the positions of the minimum, in equal parts."""
    rest = grad - slopes.sum(1, keepdim=True)
    lowest = torch.eq(values, 0, out=values)
    slopes.addcmul_(lowest, rest / lowest.sum(1, keepdim=True))
