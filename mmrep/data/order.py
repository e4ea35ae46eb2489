"""Which sample every slot of the run holds: a pure function of (seed, slot) and nothing else."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import require
from mmrep.data.draws import Purpose, below, permutation, random_bits

ORDER_VERSION = 2
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


class Blocks(NamedTuple):
    """How one epoch of a source is cut into blocks of shards that are shuffled together.

    Attributes:
        shards: (shards,) their order in this epoch.
        first: (shards + 1,) samples before each of them, in this order.
        starts: (blocks + 1,) samples before each block.
    """

    shards: NDArray[np.int64]
    first: NDArray[np.int64]
    starts: NDArray[np.int64]


class Order:
    """The order of a run.

    Each source is a concatenation of epochs, each with every sample once; batches straddle epochs. A source of at most
    `block` samples is shuffled whole. In a larger one the shards are shuffled, cut into blocks of one size, at most
    about `block` samples, and the samples of each block shuffled, so that neither memory nor time to start grow with
    the source and a step reads from the shards of one block. Slots go to sources by a fixed schedule of the weights.
    Slot t holds a sample that depends on nothing but seed, counts, weights, block, and t.

    Args:
        counts: for each source, the samples in each of its shards.
        weights: share of each source.
        seed: the run's seed.
        block: samples that are shuffled together, about.

    Raises:
        ConfigError: weights that `slot_schedule` refuses; a block of 2^31 samples or more.
    """

    def __init__(self, counts: list[NDArray[np.int64]], weights: list[float], seed: int, block: int) -> None:
        require(block < 2**31, f"data.shuffle_block {block}: expected less than 2^31 samples")
        self.seed = seed
        self.block = block
        self.firsts = [np.concatenate([[0], np.cumsum(shards)]) for shards in counts]
        self.sizes = [int(first[-1]) for first in self.firsts]
        self.schedule = slot_schedule(weights)
        taken = self.schedule[:, None] == np.arange(len(counts))
        self._before = np.cumsum(taken, axis=0) - taken
        self._per_period = taken.sum(0)
        self._blocks: list[dict[int, Blocks]] = [{} for _ in counts]
        self._shuffled: list[dict[tuple[int, int], NDArray[np.int32]]] = [{} for _ in counts]

    def slots(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The samples of slots start, …, start + count - 1: (count,) sources and (count,) positions within them."""
        source, turn = self._turns(np.arange(start, start + count))
        position = np.empty(count, dtype=np.int64)
        for s in np.unique(source).tolist():
            mine = np.flatnonzero(source == s)
            epochs, places = np.divmod(turn[mine], self.sizes[s])
            for e in np.unique(epochs).tolist():
                now = epochs == e
                position[mine[now]] = self._positions(s, e, places[now])
        return source, position

    def replacements(self, slot: int, tries: int) -> NDArray[np.int64]:
        """Positions that stand in for a slot whose sample can't be used, one after the other: (tries,) draws from the
        slot's own block."""
        source, turn = (int(value[0]) for value in self._turns(np.array([slot])))
        epoch, place = divmod(turn, self.sizes[source])
        blocks = self._blocks_of(source, epoch)
        block = int(np.searchsorted(blocks.starts, place, side="right")) - 1
        begin, end = blocks.starts[block : block + 2].tolist()
        bits = random_bits(self.seed, Purpose.REPLACEMENT, slot, 1, tries)[0]
        return self._in_source(source, blocks, begin + below(bits, end - begin))

    def shards_ahead(self, slot: int, blocks: int) -> list[NDArray[np.int64]]:
        """For each source, the shards of the block that a slot falls into and of those that follow it, in the order
        of their use.

        Args:
            slot: of the next sample.
            blocks: how many blocks of each source.
        """
        period, phase = divmod(slot, len(self.schedule))
        ahead = []
        for source, size in enumerate(self.sizes):
            epoch, place = divmod(int(period * self._per_period[source] + self._before[phase, source]), size)
            found: list[NDArray[np.int64]] = []
            while len(found) < blocks:
                cut = self._blocks_of(source, epoch)
                block = int(np.searchsorted(cut.starts, place, side="right")) - 1
                begin, end = np.searchsorted(cut.first, cut.starts[block : block + 2], side="left").tolist()
                filled = np.diff(cut.first[begin : end + 1]) > 0
                found.append(cut.shards[begin:end][filled])
                place = int(cut.starts[block + 1])
                if place == size:
                    epoch, place = epoch + 1, 0
            ahead.append(np.concatenate(found))
        return ahead

    def _turns(self, slot: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each slot, and how many samples of that source come before it."""
        period, phase = slot // len(self.schedule), slot % len(self.schedule)
        source = self.schedule[phase]
        return source, period * self._per_period[source] + self._before[phase, source]

    def _positions(self, source: int, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The positions that stand at some places of an epoch."""
        blocks = self._blocks_of(source, epoch)
        block = np.searchsorted(blocks.starts, places, side="right") - 1
        shuffled = np.empty(len(places), dtype=np.int64)
        for b in np.unique(block).tolist():
            here = block == b
            begin = blocks.starts[b]
            shuffled[here] = begin + self._block(source, epoch, b)[places[here] - begin]
        return self._in_source(source, blocks, shuffled)

    def _in_source(self, source: int, blocks: Blocks, shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
        """From places in the epoch's order of shards to positions in the source's own."""
        turn = np.searchsorted(blocks.first, shuffled, side="right") - 1
        return self.firsts[source][blocks.shards[turn]] + shuffled - blocks.first[turn]

    def _blocks_of(self, source: int, epoch: int) -> Blocks:
        kept = self._blocks[source]
        if epoch not in kept:
            _forget_all_but_one(kept)
            kept[epoch] = self._cut(source, epoch)
        return kept[epoch]

    def _cut(self, source: int, epoch: int) -> Blocks:
        """The blocks of an epoch: a shard belongs to the block that its first sample falls into."""
        first, size = self.firsts[source], self.sizes[source]
        blocks = -(-size // self.block)
        if blocks <= 1:
            return Blocks(np.arange(len(first) - 1), first, np.array([0, size]))
        shards = permutation(self.seed, len(first) - 1, _stream(source, epoch), purpose=Purpose.SHARDS)
        permuted = np.concatenate([[0], np.cumsum(np.diff(first)[shards])])
        # Equal blocks: what is left over after full ones could be a single shard, batches of which hardly mix.
        starts = permuted[np.unique(permuted[:-1] // -(-size // blocks), return_index=True)[1]]
        return Blocks(shards, permuted, np.concatenate([starts, [size]]))

    def _block(self, source: int, epoch: int, block: int) -> NDArray[np.int32]:
        """The order within one block; the two last ones of a source are kept."""
        kept = self._shuffled[source]
        if (epoch, block) not in kept:
            _forget_all_but_one(kept)
            begin, end = self._blocks_of(source, epoch).starts[block : block + 2].tolist()
            shuffled = permutation(self.seed, end - begin, _stream(source, epoch), begin)
            kept[epoch, block] = shuffled.astype(np.int32)
        return kept[epoch, block]


def _stream(source: int, epoch: int) -> int:
    return epoch << 16 | source


def _forget_all_but_one(kept: dict[Any, Any]) -> None:
    """Makes room in a store of two: the older of the two goes."""
    if len(kept) == 2:
        kept.pop(next(iter(kept)))
