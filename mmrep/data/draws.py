"""Counter-based randomness: every draw is a pure function of (seed, purpose, stream, index), on any machine.

The bits are Philox 4×64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) from numpy's bit
generator. Everything made of the bits is defined here, because library shuffles and distributions may change between
versions. Golden tests freeze both.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 4
"""64-bit words for each value of the counter."""


class Purpose(IntEnum):
    """Purposes of draws. Draws of two purposes are independent; the values are part of `order_version`."""

    ORDER = 1
    CAPTION = 2
    TEMPLATE = 3
    CROP = 4
    FLIP = 5
    PATCHES = 6
    SCENE = 7
    SHARDS = 8
    REPLACEMENT = 9


def random_bits(
    seed: int, purpose: Purpose, start: int, count: int = 1, words: int = 1, stream: int = 0
) -> NDArray[np.uint64]:
    """Return random 64-bit words of the indices start, …, start + count - 1.

    Args:
        seed: seed of the run, below 2^64.
        purpose: purpose of the draws.
        start: first index (a slot of the order, a position, a scene).
        count: number of indices.
        words: words for each index. More words change the first ones only past a multiple of 4.
        stream: a second number, such as the epoch.

    Returns:
        (count, words) words.
    """
    blocks = -(-words // _BLOCK)
    counter = np.array([start * blocks, blocks, stream, purpose], dtype=np.uint64)
    bits = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64), counter=counter)
    return bits.random_raw(count * blocks * _BLOCK).reshape(count, blocks * _BLOCK)[:, :words]


def uniforms(
    seed: int, purpose: Purpose, start: int, count: int = 1, words: int = 1, stream: int = 0
) -> NDArray[np.float64]:
    """Return (count, words) draws from [0, 1) with 53 bits; see `random_bits` for the arguments."""
    bits = random_bits(seed, purpose, start, count, words, stream)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: NDArray[np.uint64], bound: ArrayLike) -> NDArray[np.int64]:
    """Return integers in [0, bound) from 64-bit words, for bounds below 2^32.

    The method is multiply-shift, whose bias is at most bound / 2^32.
    """
    high = bits >> np.uint64(32)
    return (high * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def permutation(
    seed: int, size: int, stream: int, begin: int = 0, purpose: Purpose = Purpose.ORDER
) -> NDArray[np.int64]:
    """Return the numbers 0, …, size - 1 sorted by a random 64-bit key of each (ties, at 2^-64 a pair, by number).

    Args:
        seed: seed of the run.
        size: how many numbers.
        stream: a second number: epoch and source.
        begin: the keys are those of the indices begin, …, begin + size - 1 of the stream.
        purpose: purpose of the draws.
    """
    first, skipped = divmod(begin, _BLOCK)
    words = random_bits(seed, purpose, first, -(-(skipped + size) // _BLOCK), _BLOCK, stream)
    keys = words.ravel()[skipped : skipped + size]
    order = np.argsort(keys)  # several times as fast as a stable sort, and the same if no two keys are equal
    ordered = keys[order]
    return np.argsort(keys, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
