"""Triton programs of the power mean, launched by `triton.py`. One program takes one image and one block of channels.

The tile of tokens is held in registers in the tokens' own type, so that the maximum (and the minimum) is found before
the first power and memory is read once. A tile that does not fit is read again from the second-level cache. Everything
is calculated in float32. No sum crosses programs, so that results repeat to the bit.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
FLOOR = tl.constexpr(torch.finfo(torch.float32).eps ** 2)
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LN2 = tl.constexpr(0.6931471805599453)

# no_type_check stops the type checker of the tests from wrapping functions whose source Triton has to read.


@triton.jit
@no_type_check
def _load(x, start, patches, stride, channel, step, inside, ROWS: tl.constexpr, BOUND: tl.constexpr):
    """Load rows `start` to `start + ROWS` of an image. Past the last patch, the last patch is repeated."""
    row = tl.arange(0, ROWS)[:, None]
    if BOUND:
        row = tl.minimum(row, patches - 1 - start)
    return tl.load(x + start * stride + (row * stride + channel * step), mask=inside, other=0.0)


@triton.jit
@no_type_check
def _value(tile, low, NEGATIVES: tl.constexpr):
    """Return what is raised to the power, before its floor."""
    value = tile.to(tl.float32)
    if NEGATIVES == "shift":
        value = value - low
    elif NEGATIVES == "signed":
        value = tl.abs(value)
    return value


@triton.jit
@no_type_check
def _unit(size):
    """Return the power of two that brings a positive size into [1, 4). It is exact and never subnormal."""
    return (tl.maximum(254 - (size.to(tl.int32, bitcast=True) >> 23), 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def _log2(value):
    # The logarithm in full precision takes 30 instructions. This one takes one and errs by 2^-22 at most.
    return tl.log2(value) if INTERPRETED else libdevice.fast_log2f(value)


@triton.jit
@no_type_check
def _unit_log2(value, unit, floor):
    # Without propagate_nan, a NaN from a broken tower would turn into the floor.
    return _log2(tl.maximum(value * unit, floor, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
@no_type_check
def _widen(most, least, far, tile, NEGATIVES: tl.constexpr):
    """Return the running extremes of the tokens' bits: the signed maximum and minimum, and the unsigned maximum.

    They are integers because a tile converted to float32 here would stay in twice the registers for its second use.
    """
    bits = tile.to(most.dtype, bitcast=True)
    most = tl.maximum(most, bits)
    if NEGATIVES == "shift":
        least = tl.minimum(least, bits)
    if NEGATIVES != "clamp":
        far = tl.maximum(far, bits.to(far.dtype, bitcast=True))
    return most, least, far


@triton.jit
@no_type_check
def _number(bits, kind: tl.constexpr):
    # Triton reduces 16-bit integers as 32-bit ones.
    bits = bits.to(tl.int32 if kind == tl.float32 else tl.int16)
    return bits.to(kind, bitcast=True).to(tl.float32)[None, :]


@triton.jit
@no_type_check
def _top(most, least, far, kind: tl.constexpr, eps, NEGATIVES: tl.constexpr):
    """Return the largest value, and under `shift` the minimum that was subtracted from it."""
    most, least, far = tl.max(most, 0), tl.min(least, 0), tl.max(far, 0)
    top, low = _number(most, kind), 0.0
    # Read as signed integers, positive floats are in order and negative ones in reverse order. Read as unsigned
    # integers, negative floats come after positive ones.
    if NEGATIVES == "shift":
        low = tl.where(least[None, :] < 0, _number(far, kind), _number(least, kind))
        top = tl.where(most[None, :] < 0, _number(least, kind), top) - low
    elif NEGATIVES == "signed":
        top = tl.maximum(tl.abs(top), tl.abs(_number(far, kind)))
    return tl.maximum(top, eps if NEGATIVES == "clamp" else TINY), low


@triton.jit
@no_type_check
def _add(total, moment, tile, low, unit, floor, p, origin, start, patches,
         NEGATIVES: tl.constexpr, ROWS: tl.constexpr, BOUND: tl.constexpr):  # fmt: skip
    """Add a tile's powers relative to 2^origin, and the powers times their own base-2 logarithms."""
    log = p * _unit_log2(_value(tile, low, NEGATIVES), unit, floor) - origin
    power = tl.exp2(log)
    if NEGATIVES == "signed":
        value = tile.to(tl.float32)
        power = tl.where(value < 0, -power, tl.where(value == 0, 0.0, power))
    if BOUND:
        power = tl.where(start + tl.arange(0, ROWS)[:, None] < patches, power, 0.0)
    return total + power, moment + power * log


@triton.jit(do_not_specialize=["patches"])
@no_type_check
def power_mean_forward(
    x, exponent, pooled, derivative, scale, other, stride_image, stride, step, patches, width, eps,
    NEGATIVES: tl.constexpr, DERIVATIVE: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Pool BLOCK channels of an image.

    The patches are in PIECES tiles held in registers; PIECES is 0 if there are too many to hold. Powers are
    2^(p log2 r - origin), where r are the values times a power of two. `blocked.forward` has the formulas.
    """
    blocks = tl.cdiv(width, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = ((tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = channel < width
    x += image * stride_image
    stride = tl.cast(stride, tl.int64)
    p = tl.load(exponent + channel, mask=inside, other=1.0)

    tiles = ()
    for i in tl.static_range(PIECES):
        tiles += (_load(x, i * ROWS, patches, stride, channel, step, inside, ROWS, i == PIECES - 1),)
    tile = tiles[0] if PIECES else _load(x, 0, patches, stride, channel, step, inside, ROWS, True)
    kind: tl.constexpr = x.dtype.element_ty
    most = tile.to(tl.int32 if kind == tl.float32 else tl.int16, bitcast=True)
    least = most
    far = most.to(tl.uint32 if kind == tl.float32 else tl.uint16, bitcast=True)
    if PIECES:
        for i in tl.static_range(1, PIECES):
            most, least, far = _widen(most, least, far, tiles[i], NEGATIVES)
    else:
        for start in range(ROWS, patches, ROWS):
            tile = _load(x, start, patches, stride, channel, step, inside, ROWS, True)
            most, least, far = _widen(most, least, far, tile, NEGATIVES)
    top, low = _top(most, least, far, kind, eps, NEGATIVES)

    # Powers are relative to that of a power of two within a factor 2 of the top, so that neither a subnormal reciprocal
    # nor the coarse logarithm of a large number costs precision: at p = 100 they lie between 2^-100 and 2^100.
    unit = _unit(top)
    floor = tl.maximum(eps * unit if NEGATIVES == "clamp" else FLOOR * (top * unit), TINY)
    above = _log2(top * unit) if NEGATIVES == "signed" else 1.0
    origin = p * above
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    moment = tl.zeros((ROWS, BLOCK), tl.float32)
    if PIECES:
        for i in tl.static_range(PIECES):
            total, moment = _add(total, moment, tiles[i], low, unit, floor, p, origin, i * ROWS, patches,
                                 NEGATIVES, ROWS, i == PIECES - 1)  # fmt: skip
    else:
        for start in range(0, patches, ROWS):
            tile = _load(x, start, patches, stride, channel, step, inside, ROWS, True)
            total, moment = _add(total, moment, tile, low, unit, floor, p, origin, start, patches,
                                 NEGATIVES, ROWS, True)  # fmt: skip
    share = 1.0 / patches
    mean = tl.sum(total, 0)[None, :] * share
    moment = tl.sum(moment, 0)[None, :] * share

    at = image * width + channel
    inverse = 1.0 / p
    if NEGATIVES == "signed":
        # m (m² + ε²)^((1/p - 1)/2), whose slope at m = 0 is finite.
        square = tl.maximum(mean * mean + eps * eps, TINY)
        log = tl.log2(square)
        root = tl.exp2((inverse - 1) / 2 * log)
        slope = root * (1 + (inverse - 1) * (mean * mean / square))
        y = mean * root * top
        change = top * (LN2 * inverse * (slope * moment - mean * root * log * inverse / 2))
        tl.store(scale + at, top, mask=inside)
        tl.store(other + at, slope, mask=inside)
    else:
        # Under `shift` all powers of a constant channel may underflow.
        mean = tl.maximum(mean, TINY, propagate_nan=tl.PropagateNan.ALL)
        log = _log2(mean)
        y = tl.exp2(log * inverse + above) * _unit(unit)
        change = y * (LN2 * inverse * inverse * (moment / mean - log))
        if NEGATIVES == "shift":
            tl.store(scale + at, y, mask=inside)
            tl.store(other + at, low, mask=inside)
            y += low
    if DERIVATIVE:
        tl.store(derivative + at, change, mask=inside)
    tl.store(pooled + at, y, mask=inside)


@triton.jit
@no_type_check
def _slope(tile, low, unit, floor, threshold, q, origin, NEGATIVES: tl.constexpr):
    """Return (f/scale)^(p - 1) where the value depends on the token, else 0."""
    value = _value(tile, low, NEGATIVES)
    slope = tl.exp2(q * _unit_log2(value, unit, floor) - origin)
    return tl.where(value > threshold, slope, 0.0)


@triton.jit
@no_type_check
def _count(total, ties, tile, low, unit, floor, threshold, q, origin, start, patches,
           ROWS: tl.constexpr, BOUND: tl.constexpr):  # fmt: skip
    """Add a tile's slopes, and count how often it meets the minimum."""
    slope = _slope(tile, low, unit, floor, threshold, q, origin, "shift")
    met = (tile.to(tl.float32) == low).to(tl.float32)
    if BOUND:
        keep = start + tl.arange(0, ROWS)[:, None] < patches
        slope = tl.where(keep, slope, 0.0)
        met = tl.where(keep, met, 0.0)
    return total + slope, ties + met


@triton.jit
@no_type_check
def _store(dx, slope, weight, tile, low, lowest, start, patches, width, channel, inside,
           NEGATIVES: tl.constexpr, ROWS: tl.constexpr, BOUND: tl.constexpr):  # fmt: skip
    gradient = slope * weight
    if NEGATIVES == "shift":
        gradient = tl.where(tile.to(tl.float32) == low, lowest, gradient)
    row = tl.arange(0, ROWS)[:, None]
    keep = inside & (start + row < patches) if BOUND else inside
    dx += tl.cast(start, tl.int64) * width + (row * width + channel)
    tl.store(dx, gradient.to(dx.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["patches"])
@no_type_check
def power_mean_backward(
    x, exponent, gradient, scale, other, dx, stride_image, stride, step, patches, width, eps,
    NEGATIVES: tl.constexpr, PIECES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the tokens, in the blocks of `power_mean_forward`."""
    blocks = tl.cdiv(width, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    channel = ((tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK))[None, :]
    inside = channel < width
    x += image * stride_image
    dx += image * patches * width
    stride = tl.cast(stride, tl.int64)
    at = image * width + channel

    # All loads come before the first store, since the compiler can't move a load across a store.
    tiles = ()
    for i in tl.static_range(PIECES):
        tiles += (_load(x, i * ROWS, patches, stride, channel, step, inside, ROWS, i == PIECES - 1),)
    p = tl.load(exponent + channel, mask=inside, other=1.0)
    weight = tl.load(gradient + at, mask=inside, other=0.0)
    size = tl.maximum(tl.load(scale + at, mask=inside, other=1.0), TINY, propagate_nan=tl.PropagateNan.ALL)
    low = 0.0
    share = 1.0 / patches
    if NEGATIVES == "shift":
        low = tl.load(other + at, mask=inside, other=0.0)
    elif NEGATIVES == "signed":
        share *= p * tl.load(other + at, mask=inside, other=0.0)
    unit = _unit(size)
    threshold = eps if NEGATIVES == "clamp" else FLOOR * size
    floor = tl.maximum(eps * unit if NEGATIVES == "clamp" else FLOOR * (size * unit), TINY)
    q = p - 1
    origin = q * _log2(size * unit)

    lowest = 0.0
    if NEGATIVES == "shift":
        # The minimum gets the part of the gradient that does not reach the tokens through x - low, in equal parts where
        # it occurs several times.
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        ties = tl.zeros((ROWS, BLOCK), tl.float32)
        if PIECES:
            for i in tl.static_range(PIECES):
                total, ties = _count(total, ties, tiles[i], low, unit, floor, threshold, q, origin, i * ROWS,
                                     patches, ROWS, i == PIECES - 1)  # fmt: skip
        else:
            for start in range(0, patches, ROWS):
                tile = _load(x, start, patches, stride, channel, step, inside, ROWS, True)
                total, ties = _count(total, ties, tile, low, unit, floor, threshold, q, origin, start,
                                     patches, ROWS, True)  # fmt: skip
        lowest = weight * (1 - tl.sum(total, 0)[None, :] * share) / tl.sum(ties, 0)[None, :]
    weight *= share
    if PIECES:
        for i in tl.static_range(PIECES):
            slope = _slope(tiles[i], low, unit, floor, threshold, q, origin, NEGATIVES)
            _store(dx, slope, weight, tiles[i], low, lowest, i * ROWS, patches, width, channel, inside,
                   NEGATIVES, ROWS, i == PIECES - 1)  # fmt: skip
    else:
        for start in range(0, patches, ROWS):
            tile = _load(x, start, patches, stride, channel, step, inside, ROWS, True)
            slope = _slope(tile, low, unit, floor, threshold, q, origin, NEGATIVES)
            _store(dx, slope, weight, tile, low, lowest, start, patches, width, channel, inside,
                   NEGATIVES, ROWS, True)  # fmt: skip
