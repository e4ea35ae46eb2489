"""Counter-based randomness: every draw is a pure function of (seed, purpose, stream, index), on any machine.

The bits are Philox 4×64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) as numpy's bit
generator gives them; all that is made of the bits stands here, since the streams of library shuffles and distributions
may change between versions. Golden tests freeze both.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 4
"""64-bit words that one value of the counter gives."""


class Purpose(IntEnum):
    """What a draw is for; draws of two purposes are independent. Values are part of `order_version`."""

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
    """Random 64-bit words of the indices start, …, start + count - 1.

    Args:
        seed: the run's seed, below 2^64.
        purpose: what the draws are for.
        start: first index (a slot of the order, a position, a scene).
        count: number of indices.
        words: words for each index; another number of words is another set of draws only past a multiple of 4.
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
    """(count, words) draws from [0, 1) with 53 bits; arguments as in `random_bits`."""
    bits = random_bits(seed, purpose, start, count, words, stream)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(bits: NDArray[np.uint64], bound: ArrayLike) -> NDArray[np.int64]:
    """Integers in [0, bound) from 64-bit words, for bounds below 2^32 (multiply-shift: bias at most bound / 2^32)."""
    high = bits >> np.uint64(32)
    return (high * np.asarray(bound, dtype=np.uint64) >> np.uint64(32)).astype(np.int64)


def permutation(
    seed: int, size: int, stream: int, begin: int = 0, purpose: Purpose = Purpose.ORDER
) -> NDArray[np.int64]:
    """The numbers 0, …, size - 1 sorted by a random 64-bit key of each (ties, at 2^-64 a pair, by number).

    Args:
        seed: the run's seed.
        size: how many.
        stream: a second number: epoch and source.
        begin: the keys are those of the indices begin, …, begin + size - 1 of the stream.
        purpose: what the draws are for.
    """
    first, skipped = divmod(begin, _BLOCK)
    words = random_bits(seed, purpose, first, -(-(skipped + size) // _BLOCK), _BLOCK, stream)
    keys = words.ravel()[skipped : skipped + size]
    order = np.argsort(keys)  # several times as fast as a stable sort, and the same where no two are equal
    ordered = keys[order]
    return np.argsort(keys, kind="stable") if (ordered[1:] == ordered[:-1]).any() else order
