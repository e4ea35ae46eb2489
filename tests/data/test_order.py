"""The order of a run: frozen, complete, and the same however it is cut."""

import math
import random
import tracemalloc

import numpy as np
import pytest

from mmrep.config.checks import ConfigError
from mmrep.data.draws import Purpose, permutation
from mmrep.data.order import MAX_PERIOD, ORDER_VERSION, Order, slot_schedule


def build(sizes: list[int], weights: list[float], seed: int, block: int = 1 << 20) -> Order:
    """Sources of one shard each."""
    return Order([np.array([size]) for size in sizes], weights, seed, block)


def pairs(order: Order, start: int, count: int) -> list[tuple[int, int]]:
    source, position = order.slots(start, count)
    return list(zip(source.tolist(), position.tolist(), strict=True))


def test_order_version_2_is_frozen() -> None:
    assert ORDER_VERSION == 2
    assert build([10], [1.0], seed=0).slots(0, 14)[1].tolist() == [7, 3, 8, 1, 0, 4, 9, 5, 6, 2, 7, 8, 5, 1]
    assert build([10], [1.0], seed=1).slots(0, 10)[1].tolist() == [1, 8, 3, 7, 9, 0, 4, 5, 6, 2]
    source, position = build([5, 3, 4], [0.5, 0.2, 0.3], seed=7).slots(0, 10)
    assert source.tolist() == [0, 2, 0, 1, 0, 2, 0, 1, 0, 2]
    assert position.tolist() == [0, 2, 1, 0, 2, 3, 4, 2, 3, 0]
    assert build([1000], [1.0], seed=3).slots(123_456_789, 6)[1].tolist() == [683, 809, 95, 774, 725, 109]


@pytest.mark.parametrize("size", [1, 7, 64])
def test_every_epoch_holds_every_sample_once(size: int) -> None:
    positions = build([size], [1.0], seed=0).slots(0, 4 * size)[1].reshape(4, size)
    np.testing.assert_array_equal(np.sort(positions, axis=1), np.tile(np.arange(size), (4, 1)))


def test_every_source_keeps_its_own_epochs() -> None:
    order = build([6, 9], [2.0, 1.0], seed=0)
    source, position = order.slots(0, 54)
    for s, size in ((0, 6), (1, 9)):
        own = position[source == s]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size].tolist()) == list(range(size))


def test_batches_straddle_epochs() -> None:
    order = build([10], [1.0], seed=0)
    batches = [order.slots(4 * step, 4)[1] for step in range(5)]
    assert sorted(np.concatenate(batches).tolist()) == sorted(2 * list(range(10)))


def test_sources_of_one_size_have_other_orders() -> None:
    source, position = build([50, 50], [1.0, 1.0], seed=0).slots(0, 100)
    assert position[source == 0].tolist() != position[source == 1].tolist()


@pytest.mark.parametrize(("sizes", "weights"), [([13], [1.0]), ([13, 5, 7], [0.5, 0.3, 0.2])])
def test_slots_do_not_depend_on_chunks_or_on_what_was_asked_before(sizes: list[int], weights: list[float]) -> None:
    whole = pairs(build(sizes, weights, 0), 0, 120)
    assert pairs(build(sizes, weights, 0), 70, 50) == whole[70:]
    for processes in (1, 2, 3, 4):
        local = 12 // processes
        orders = [build(sizes, weights, 0) for _ in range(processes)]
        slices = [pairs(orders[r], 12 * step + r * local, local) for step in range(10) for r in range(processes)]
        assert [pair for part in slices for pair in part] == whole
    backwards = build(sizes, weights, 0)
    assert [pairs(backwards, slot, 1)[0] for slot in reversed(range(120))] == whole[::-1]


def test_many_sources_keep_their_permutations() -> None:
    """A batch of many sources must not compute every permutation anew (it did, with one small cache for all)."""
    order = build([200_000] * 12, [1.0] * 12, seed=0)
    order.slots(0, 24)
    before = [dict(kept) for kept in order._shuffled]
    order.slots(24, 24)
    assert all(a[0, 0] is b[0, 0] for a, b in zip(before, order._shuffled, strict=True))


@pytest.mark.parametrize(
    "weights", [[1.0], [0.7, 0.3], [3.0, 2.0, 1.0], [0.25, 0.5, 0.125, 0.125], [1e-3, 0.999], [1.0, 1.0, 1.0]]
)
def test_schedule_is_exact_over_whole_periods(weights: list[float]) -> None:
    schedule = slot_schedule(weights)
    shares = np.bincount(schedule, minlength=len(weights)) / len(schedule)
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), rtol=1e-12)


def test_weights_have_the_shortest_period() -> None:
    assert len(slot_schedule([0.5, 0.5])) == 2
    assert len(slot_schedule([20.0, 10.0])) == 3
    assert len(slot_schedule([0.7, 0.2, 0.1])) == 10


def test_no_prefix_is_a_sample_off() -> None:
    rng = random.Random(0)
    cases = [[1, 8, 4, 128, 8, 128, 128, 1, 128, 1]]  # the largest-lag-first rule is 1.33 samples off here
    cases += [[rng.choice([1, 2, 3, 5, 8, 32, 100]) for _ in range(rng.randint(2, 9))] for _ in range(150)]
    for weights in cases:
        schedule = slot_schedule([float(w) for w in weights])
        taken = np.cumsum(schedule[:, None] == np.arange(len(weights)), axis=0)
        due = np.arange(1, len(schedule) + 1)[:, None] * np.array(weights) / sum(weights)
        assert np.abs(taken - due).max() < 1, weights


@pytest.mark.parametrize("weights", [[math.inf, 1.0], [math.nan, 1.0]])
def test_infinite_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite"):
        slot_schedule(weights)


def test_odd_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rounder numbers.*300001 slots"):
        slot_schedule([0.00001, 3.0])
    assert len(slot_schedule([1 / MAX_PERIOD, 1 - 1 / MAX_PERIOD])) == MAX_PERIOD


# Blocks of shards

RAGGED = [5, 0, 9, 1, 0, 40, 3, 3, 7, 0]
"""Shards without samples, and one larger than most blocks."""


def of_shards(counts: list[int], block: int, seed: int = 0) -> Order:
    """One source."""
    return Order([np.array(counts, dtype=np.int64)], [1.0], seed, block)


def reference(counts: list[int], block: int, epoch: int, seed: int = 0, source: int = 0) -> list[list[int]]:
    """The blocks of an epoch, in their order, put together sample by sample."""
    size, stream = sum(counts), epoch << 16 | source
    first = [sum(counts[:shard]) for shard in range(len(counts))]
    whole = size <= block
    shards = range(len(counts)) if whole else permutation(seed, len(counts), stream, purpose=Purpose.SHARDS).tolist()
    share = math.ceil(size / math.ceil(size / block))
    blocks: dict[int, list[int]] = {}
    before = 0
    for shard in shards:
        blocks.setdefault(before // share, []).extend(range(first[shard], first[shard] + counts[shard]))
        before += counts[shard]
    ordered, begin = [], 0
    for positions in filter(None, blocks.values()):
        ordered.append([positions[i] for i in permutation(seed, len(positions), stream, begin).tolist()])
        begin += len(positions)
    return ordered


def test_blocks_are_frozen() -> None:
    order = of_shards([4, 0, 7, 3, 5, 1], block=8)
    assert order.slots(0, 40)[1].tolist() == [
        13, 2, 0, 19, 3, 11, 12, 1, 4, 10, 7, 9, 8, 6, 5, 16, 18, 14, 17, 15,
        9, 5, 7, 4, 8, 6, 10, 2, 19, 14, 3, 16, 18, 0, 15, 1, 17, 12, 13, 11,
    ]  # fmt: skip
    assert of_shards([4, 0, 7, 3, 5, 1], block=8, seed=1).slots(20 * 10**9, 5)[1].tolist() == [12, 16, 19, 15, 17]
    mixed = Order([np.array([3, 4, 2]), np.array([6, 6])], [0.75, 0.25], seed=5, block=5)
    assert mixed.slots(1000, 12)[1].tolist() == [7, 5, 4, 0, 2, 0, 1, 1, 5, 7, 3, 5]
    replaced = [order.replacements(slot, 4).tolist() for slot in (0, 11, 39)]
    assert replaced == [[2, 2, 13, 12], [9, 6, 8, 4], [12, 12, 11, 12]]


@pytest.mark.parametrize("block", [1, 3, 8, 17, 67, 68, 1000])
@pytest.mark.parametrize("counts", [RAGGED, [1] * 30, [68], [0, 0, 5]])
def test_epochs_of_blocks_are_those_of_the_reference(counts: list[int], block: int) -> None:
    size = sum(counts)
    epochs = of_shards(counts, block).slots(0, 3 * size)[1].reshape(3, size).tolist()
    for epoch, positions in enumerate(epochs):
        assert sorted(positions) == list(range(size))
        assert positions == [position for part in reference(counts, block, epoch) for position in part]


def test_random_shards_stand_once_an_epoch() -> None:
    rng = random.Random(1)
    for seed in range(60):
        counts = [rng.choice([0, 1, 2, 5, 30]) for _ in range(rng.randint(1, 25))] + [1]
        block, size = rng.randint(1, 40), sum(counts)
        positions = of_shards(counts, block, seed).slots(size, size)[1].tolist()
        assert sorted(positions) == list(range(size)), (counts, block)
        assert positions == [p for part in reference(counts, block, 1, seed) for p in part], (counts, block)


@pytest.mark.parametrize(
    ("shards", "block", "expected"), [(21, 100, [70, 70, 70]), (11, 100, [60, 50]), (40, 25, None)]
)
def test_blocks_have_about_one_size(shards: int, block: int, expected: list[int] | None) -> None:
    """What is left over after full blocks must not be a small block of its own, which would hardly mix."""
    sizes = np.diff(of_shards([10] * shards, block)._blocks_of(0, 0).starts)
    assert expected is None or sizes.tolist() == expected
    assert sizes.sum() == 10 * shards and sizes.max() - sizes.min() <= 10 and sizes.max() < block + 10


def test_shards_of_a_block_change_with_the_epoch() -> None:
    order = of_shards([10] * 40, 100)
    first, second = (set(order.shards_ahead(slot, 1)[0].tolist()) for slot in (0, 400))
    assert len(first) == len(second) == 10 and first != second


@pytest.mark.parametrize("block", [1, 8, 17, 1000])
def test_shards_ahead_are_those_that_slots_read(block: int) -> None:
    order, size = of_shards(RAGGED, block), sum(RAGGED)
    shard_of = np.repeat(np.arange(len(RAGGED)), RAGGED)
    parts = [part for epoch in range(4) for part in reference(RAGGED, block, epoch)]
    read = [sorted(set(shard_of[part].tolist())) for part in parts]
    slot = 0
    for number, part in enumerate(parts):
        for _ in part if slot < 2 * size else []:
            for blocks in (1, 2, 3):
                if number + blocks > len(parts):
                    continue
                ahead = order.shards_ahead(slot, blocks)[0].tolist()
                cut = [len(shards) for shards in read[number : number + blocks]]
                split = [sorted(ahead[sum(cut[:i]) : sum(cut[: i + 1])]) for i in range(blocks)]
                assert split == read[number : number + blocks] and len(ahead) == sum(cut)
            slot += 1


def test_shards_ahead_of_a_mixture_hold_the_next_sample_of_every_source() -> None:
    counts = [[5, 9, 1, 8], [3, 0, 3, 7, 2, 2]]
    order = Order([np.array(shards) for shards in counts], [0.7, 0.3], 2, block=9)
    source, position = order.slots(0, 300)
    shard_of = [np.repeat(np.arange(len(shards)), shards) for shards in counts]
    for slot in range(280):
        ahead = order.shards_ahead(slot, 1)
        for s in range(2):
            following = slot + int(np.flatnonzero(source[slot:] == s)[0])
            assert shard_of[s][position[following]] in ahead[s]


@pytest.mark.parametrize("block", [8, 17, 1000])
def test_replacements_come_from_the_slots_own_block(block: int) -> None:
    order = of_shards(RAGGED, block)
    slot = 0
    for epoch in range(2):
        for part in reference(RAGGED, block, epoch):
            drawn = np.stack([order.replacements(slot + i, 50) for i in range(len(part))])
            assert set(drawn.ravel().tolist()) <= set(part)
            assert len(part) < 20 or len(set(drawn.ravel().tolist())) > 0.9 * len(part)
            slot += len(part)
    assert order.replacements(3, 5).tolist() == of_shards(RAGGED, block).replacements(3, 5).tolist()


def test_blocks_do_not_depend_on_chunks_or_on_what_was_asked_before() -> None:
    def build_blocks() -> Order:
        return Order([np.array(RAGGED), np.array([7, 7, 7, 7])], [0.7, 0.3], 4, block=13)

    whole = pairs(build_blocks(), 0, 240)
    for processes in (1, 2, 3, 4, 6):
        local = 12 // processes
        orders = [build_blocks() for _ in range(processes)]
        slices = [pairs(orders[r], 12 * step + r * local, local) for step in range(20) for r in range(processes)]
        assert [pair for part in slices for pair in part] == whole
    for workers in (2, 5):
        orders = [build_blocks() for _ in range(workers)]
        slices = [pairs(orders[step % workers], 12 * step, 12) for step in range(20)]
        assert [pair for part in slices for pair in part] == whole
    one = build_blocks()
    assert [pairs(one, slot, 1)[0] for slot in reversed(range(240))] == whole[::-1]


def test_sources_of_equal_shards_have_other_blocks() -> None:
    order = Order([np.full(20, 5)] * 2, [1.0, 1.0], 0, block=25)
    first, second = (shards.tolist() for shards in order.shards_ahead(0, 1))
    assert first != second


def test_memory_does_not_grow_with_what_was_read() -> None:
    order = Order([np.full(300, 1000)], [1.0], 0, block=10_000)
    order.slots(0, 10_000)
    tracemalloc.start()
    for step in range(70):  # over two epochs
        order.slots(step * 10_000, 10_000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000, "two blocks of 40 kB, the shards' order of two epochs"
    assert peak < 1_500_000, "300,000 positions of 8 bytes would be 2,400,000"


@pytest.mark.parametrize(
    ("shards", "samples", "slot"), [(4000, 500_000, 2**33 + 12_345), (14_000, 500_000, 3 * 2**40 + 1)]
)
def test_more_samples_and_slots_than_32_bits_hold(shards: int, samples: int, slot: int) -> None:
    """2·10^9 and 7·10^9 samples; a shard is more than a block so that the test stays quick."""
    order = of_shards([samples] * shards, 1000)
    epoch, place = divmod(slot, samples * shards)
    turn, within = divmod(place, samples)
    shard = int(permutation(0, shards, epoch << 16, purpose=Purpose.SHARDS)[turn])
    begin = turn * samples
    expected = shard * samples + permutation(0, samples, epoch << 16, begin)[within : within + 3]
    assert order.slots(slot, 3)[1].tolist() == expected.tolist()
    assert order.shards_ahead(slot, 1)[0].tolist() == [shard]
    replaced = order.replacements(slot, 1000)
    assert replaced.min() >= shard * samples and replaced.max() < (shard + 1) * samples
    assert replaced.max() - replaced.min() > 0.9 * samples


def test_the_whole_range_of_a_huge_source_is_reached() -> None:
    order = of_shards([10_000] * 500_000, 1 << 17)
    assert order.sizes == [5 * 10**9]
    seen = np.concatenate([order.slots(slot, 1000)[1] for slot in range(0, 5 * 10**9, 10**9)])
    assert seen.min() >= 0 and seen.max() > 2**32 and seen.max() < 5 * 10**9
    assert len(np.unique(seen)) == 5000
    last = order.slots(5 * 10**9 - 1, 2)[1]
    assert last[0] != last[1] and len(order.slots(0, 0)[1]) == 0


def test_blocks_past_31_bits_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.shuffle_block 2147483648: expected less than 2\^31"):
        of_shards([5], 2**31)
