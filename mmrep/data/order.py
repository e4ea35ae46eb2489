"""Which sample every slot of the run holds: a pure function of (seed, slot) and nothing else."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import require
from mmrep.data.draws import permutation

ORDER_VERSION = 1
"""Changes where the same seed and shards would give another order; frozen by golden tests."""

MAX_PERIOD = 100_000


def slot_schedule(weights: list[float]) -> NDArray[np.int64]:
    """The sources of one period of slots, spread evenly, in exact proportion to the weights.

    Weights are taken as decimal fractions (0.7 is 7/10), so that the period is an integer. Of the sources that are
    behind their share, a slot goes to the one that would first be a whole sample behind (the first among equals), so
    that none is ever a sample off (Tijdeman, "The chairman assignment problem", 1980).

    Raises:
        ConfigError: a weight that is not finite; the period would be longer than MAX_PERIOD slots.
    """
    require(all(map(math.isfinite, weights)), f"data.train weights {weights}: expected finite numbers")
    shares = [Fraction(str(weight)) for weight in weights]
    unit = math.lcm(*(share.denominator for share in shares))
    counts = [int(share * unit) for share in shares]
    divisor = math.gcd(*counts)
    counts = [count // divisor for count in counts]
    period = sum(counts)
    require(
        period <= MAX_PERIOD, f"data.train weights {weights}: use rounder numbers (they repeat after {period} slots)"
    )
    schedule = np.empty(period, dtype=np.int64)
    credit = [0] * len(counts)
    for slot in range(period):
        credit = [c + count for c, count in zip(credit, counts, strict=True)]
        behind = [source for source, c in enumerate(credit) if c > 0]
        chosen = min(behind, key=lambda source: (period - credit[source]) // counts[source])
        credit[chosen] -= period
        schedule[slot] = chosen
    return schedule


class Order:
    """The order of a run.

    Each source is a concatenation of epochs, each a permutation of its own; batches straddle epochs. Slots go to
    sources by a fixed schedule of the weights. Slot t holds a sample that depends on nothing but seed, sizes, weights,
    and t.

    Args:
        sizes: samples in each source.
        weights: share of each source.
        seed: the run's seed.
    """

    def __init__(self, sizes: list[int], weights: list[float], seed: int) -> None:
        self.sizes = sizes
        self.seed = seed
        self.schedule = slot_schedule(weights)
        taken = self.schedule[:, None] == np.arange(len(sizes))
        self._before = np.cumsum(taken, axis=0) - taken
        self._per_period = taken.sum(0)
        self._epochs: list[dict[int, NDArray[np.int64]]] = [{} for _ in sizes]

    def slots(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of slots start, …, start + count - 1: (count,) sources and (count,) positions within them."""
        slot = np.arange(start, start + count)
        period, phase = slot // len(self.schedule), slot % len(self.schedule)
        source = self.schedule[phase]
        turn = period * self._per_period[source] + self._before[phase, source]
        position = np.empty(count, dtype=np.int64)
        for s in np.unique(source):
            mine = np.flatnonzero(source == s)
            epoch, place = np.divmod(turn[mine], self.sizes[s])
            for e in np.unique(epoch):
                now = epoch == e
                position[mine[now]] = self._epoch(int(s), int(e))[place[now]]
        return source, position

    def _epoch(self, source: int, epoch: int) -> NDArray[np.int64]:
        """The permutation of one epoch of one source, on a stream of its own; the two last ones are kept."""
        kept = self._epochs[source]
        if epoch not in kept:
            if len(kept) == 2:
                kept.pop(min(kept))
            kept[epoch] = permutation(self.seed, self.sizes[source], epoch << 16 | source)
        return kept[epoch]
