"""The sample of every slot of the run: a pure function of (seed, slot)."""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import require
from mmrep.data.draws import Purpose, below, permutation, random_bits

ORDER_VERSION = 2
"""Changes whenever the same seed and shards would give another order; frozen by golden tests."""

MAX_PERIOD = 100_000


def slot_schedule(weights: list[float]) -> NDArray[np.int64]:
    """Return the sources of one period of slots, spread evenly, in exact proportion to the weights.

    Weights are read as decimal fractions (0.7 is 7/10), so that the period is an integer. Among the sources that are
    behind their share, the slot goes to the one that would be the first to be a whole sample behind (the first among
    equals). No source is then ever a sample off (Tijdeman, "The chairman assignment problem", 1980).

    Raises:
        ConfigError: a weight is not finite, or the period is longer than MAX_PERIOD slots.
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
    """The blocks of shards of one epoch of a source; the samples of a block are shuffled together.

    Attributes:
        shards: (shards,) their order in this epoch.
        first: (shards + 1,) number of samples before each of them, in this order.
        starts: (blocks + 1,) number of samples before each block.
    """

    shards: NDArray[np.int64]
    first: NDArray[np.int64]
    starts: NDArray[np.int64]


class Order:
    """The order of a run.

    Each source is a concatenation of epochs, each with every sample once; batches may straddle epochs. A source of at
    most `block` samples is shuffled as a whole. In a larger one the shards are shuffled, then cut into blocks of equal
    size of about `block` samples at most, and the samples of each block are shuffled. Memory and start-up time then do
    not grow with the source, and a step reads from the shards of one block. Slots go to sources by a fixed schedule of
    the weights. The sample of slot t depends on nothing but seed, counts, weights, block, and t.

    Args:
        counts: for each source, the number of samples in each of its shards.
        weights: the share of each source.
        seed: seed of the run.
        block: number of samples that are shuffled together, about.

    Raises:
        ConfigError: `slot_schedule` refuses the weights, or a block has 2^31 samples or more.
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
        """Return the samples of slots start, …, start + count - 1: (count,) sources, (count,) positions in them."""
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
        """Return positions to try in turn if a slot's sample can't be used: (tries,) draws from the slot's block."""
        source, turn = (int(value[0]) for value in self._turns(np.array([slot])))
        epoch, place = divmod(turn, self.sizes[source])
        blocks = self._blocks_of(source, epoch)
        block = int(np.searchsorted(blocks.starts, place, side="right")) - 1
        begin, end = blocks.starts[block : block + 2].tolist()
        bits = random_bits(self.seed, Purpose.REPLACEMENT, slot, 1, tries)[0]
        return self._in_source(source, blocks, begin + below(bits, end - begin))

    def shards_ahead(self, slot: int, blocks: int) -> list[NDArray[np.int64]]:
        """Return for each source the shards of a slot's block and of those that follow, in the order of their use.

        Args:
            slot: slot of the next sample.
            blocks: number of blocks of each source.
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
        """Return the source of each slot, and the number of samples of that source before it."""
        period, phase = slot // len(self.schedule), slot % len(self.schedule)
        source = self.schedule[phase]
        return source, period * self._per_period[source] + self._before[phase, source]

    def _positions(self, source: int, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions in a source of the samples at some places of an epoch."""
        blocks = self._blocks_of(source, epoch)
        block = np.searchsorted(blocks.starts, places, side="right") - 1
        shuffled = np.empty(len(places), dtype=np.int64)
        for b in np.unique(block).tolist():
            here = block == b
            begin = blocks.starts[b]
            shuffled[here] = begin + self._block(source, epoch, b)[places[here] - begin]
        return self._in_source(source, blocks, shuffled)

    def _in_source(self, source: int, blocks: Blocks, shuffled: NDArray[np.int64]) -> NDArray[np.int64]:
        """Convert places in the epoch's order of shards to positions in the source's own order."""
        turn = np.searchsorted(blocks.first, shuffled, side="right") - 1
        return self.firsts[source][blocks.shards[turn]] + shuffled - blocks.first[turn]

    def _blocks_of(self, source: int, epoch: int) -> Blocks:
        kept = self._blocks[source]
        if epoch not in kept:
            _keep_one(kept)
            kept[epoch] = self._cut(source, epoch)
        return kept[epoch]

    def _cut(self, source: int, epoch: int) -> Blocks:
        """Return the blocks of an epoch. A shard belongs to the block of its first sample."""
        first, size = self.firsts[source], self.sizes[source]
        blocks = -(-size // self.block)
        if blocks <= 1:
            return Blocks(np.arange(len(first) - 1), first, np.array([0, size]))
        shards = permutation(self.seed, len(first) - 1, _stream(source, epoch), purpose=Purpose.SHARDS)
        permuted = np.concatenate([[0], np.cumsum(np.diff(first)[shards])])
        # Equal blocks: the rest after full ones could be a single shard, whose batches hardly mix.
        starts = permuted[np.unique(permuted[:-1] // -(-size // blocks), return_index=True)[1]]
        return Blocks(shards, permuted, np.concatenate([starts, [size]]))

    def _block(self, source: int, epoch: int, block: int) -> NDArray[np.int32]:
        """Return the order within one block. The last two blocks of a source stay in memory."""
        kept = self._shuffled[source]
        if (epoch, block) not in kept:
            _keep_one(kept)
            begin, end = self._blocks_of(source, epoch).starts[block : block + 2].tolist()
            shuffled = permutation(self.seed, end - begin, _stream(source, epoch), begin)
            kept[epoch, block] = shuffled.astype(np.int32)
        return kept[epoch, block]


def _stream(source: int, epoch: int) -> int:
    return epoch << 16 | source


def _keep_one(kept: dict[Any, Any]) -> None:
    """Drop the older of two entries, so that there is room for a second one."""
    if len(kept) == 2:
        kept.pop(next(iter(kept)))
