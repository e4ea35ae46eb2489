"""The order of a run: frozen, complete, and the same however it is cut."""

import math
import random

import numpy as np
import pytest

from mmrep.config.checks import ConfigError
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
