"""Counter-based draws against Philox written out here, and their laws."""

import numpy as np
import pytest

from mmrep.data.draws import Purpose, below, permutation, random_bits, uniforms

_MASK = 2**64 - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4×64-10 in plain integers (Salmon et al., SC 2011, table 2 and section 3.3)."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * a, 2**64)
        high1, low1 = divmod(0xCA5A826395121157 * c, 2**64)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & _MASK, (k1 + 0xBB67AE8584CAA73B) & _MASK
    return [a, b, c, d]


def test_reference_gives_random123s_known_answer() -> None:
    assert philox([0] * 4, [0] * 2) == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]


@pytest.mark.parametrize("words", [1, 4, 6])
def test_bits_are_philox_of_index_words_stream_and_purpose(words: int) -> None:
    blocks = -(-words // 4)
    got = random_bits(7, Purpose.CROP, 10, 3, words, stream=5)
    for row, index in zip(got.tolist(), range(10, 13), strict=True):
        # numpy counts up before it draws: the first block of an index has counter index * blocks + 1
        counters = [[index * blocks + block + 1, blocks, 5, Purpose.CROP] for block in range(blocks)]
        assert row == [word for counter in counters for word in philox(counter, [7, 0])][:words]


def test_bits_are_frozen() -> None:
    assert random_bits(2**64 - 1, Purpose.FLIP, 123456789012, 2).tolist() == [
        [6369486211718339897],
        [16501030078340390416],
    ]
    assert uniforms(3, Purpose.CAPTION, 0, 2)[:, 0].tolist() == [0.4256430079553287, 0.17220777945614552]
    assert permutation(3, 10, 2).tolist() == [8, 4, 1, 7, 6, 2, 5, 9, 0, 3]


@pytest.mark.parametrize("words", [1, 3, 4, 5, 40])
def test_a_range_is_its_single_draws(words: int) -> None:
    whole = random_bits(1, Purpose.PATCHES, 100, 9, words)
    single = [random_bits(1, Purpose.PATCHES, 100 + i, 1, words) for i in range(9)]
    assert whole.shape == (9, words)
    np.testing.assert_array_equal(whole, np.concatenate(single))


def test_seed_purpose_stream_and_index_give_other_draws() -> None:
    draws = [
        random_bits(0, Purpose.CROP, 0),
        random_bits(1, Purpose.CROP, 0),
        random_bits(0, Purpose.FLIP, 0),
        random_bits(0, Purpose.CROP, 1),
        random_bits(0, Purpose.CROP, 0, stream=1),
    ]
    assert len({int(bits[0, 0]) for bits in draws}) == 5


def test_purposes_keep_their_numbers() -> None:
    assert {p.name: p.value for p in Purpose} == {
        "ORDER": 1, "CAPTION": 2, "TEMPLATE": 3, "CROP": 4, "FLIP": 5, "PATCHES": 6, "SCENE": 7,
        "SHARDS": 8, "REPLACEMENT": 9,
    }  # fmt: skip


def test_uniforms_fill_the_unit_interval() -> None:
    draws = uniforms(0, Purpose.CROP, 0, 5000, 4).ravel()
    assert draws.min() >= 0 and draws.max() < 1
    tenths = np.histogram(draws, bins=10, range=(0, 1))[0] / len(draws)
    # Four standard deviations of a share of 20,000 draws.
    np.testing.assert_allclose(tenths, 0.1, atol=4 * (0.1 * 0.9 / len(draws)) ** 0.5)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("bound", [1, 2, 7, 1000, 2**32 - 1])
def test_below_stays_below(bound: int) -> None:
    extremes = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    assert below(extremes, bound).tolist() == [0, bound // 2, bound - 1]


def test_below_hits_every_value_alike() -> None:
    counts = np.bincount(below(random_bits(0, Purpose.CAPTION, 0, 6000)[:, 0], 6), minlength=6)
    np.testing.assert_allclose(counts, 1000, atol=4 * (6000 * 5 / 36) ** 0.5)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_permutation_holds_every_position_once(size: int) -> None:
    np.testing.assert_array_equal(np.sort(permutation(0, size, 0)), np.arange(size))


def test_permutations_of_epochs_and_seeds_differ() -> None:
    orders = [permutation(seed, 100, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert all((order != np.arange(100)).mean() > 0.9 for order in orders)


def test_every_position_comes_first_alike() -> None:
    first = np.bincount([permutation(0, 5, epoch)[0] for epoch in range(2000)], minlength=5)
    np.testing.assert_allclose(first, 400, atol=4 * (2000 * 4 / 25) ** 0.5)
