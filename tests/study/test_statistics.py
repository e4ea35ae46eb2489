"""Paired differences against scipy, the floor that a metric's resolution sets, and verdicts on one family."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from mmrep.study.statistics import NO_VERDICT, Difference, Paired, compare_pairs

A = [0.52, 0.55, 0.51, 0.58, 0.54]
B = [0.50, 0.51, 0.50, 0.53, 0.53]
PRIMARY = "set/acc1"


def pair(a: list[float], b: list[float], metric: str = PRIMARY, resolution: float = 1e-4) -> Paired:
    return Paired(metric, "ggem", "avg", a, b, resolution)


def difference(a: list[float], b: list[float], confidence: float = 0.95, resolution: float = 1e-4) -> Difference:
    return compare_pairs([pair(a, b, resolution=resolution)], PRIMARY, confidence)[0]


def test_agrees_with_scipy() -> None:
    found = difference(A, B)
    test = stats.ttest_rel(A, B)
    interval = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(A, B)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(test.pvalue)
    assert (found.seeds, found.exploratory) == (5, False)
    assert difference(A, B, 0.9).high < found.high  # type: ignore[operator]  # five seeds have an interval


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_verdict(seeds: int) -> None:
    found = difference(A[:seeds], B[:seeds])
    assert found.mean == pytest.approx(np.mean(np.subtract(A[:seeds], B[:seeds])))
    assert (found.low, found.high, found.p, found.p_adjusted, found.verdict) == (None,) * 5
    assert found.method == NO_VERDICT


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_seeds_that_agree_on_one_image_prove_nothing(seeds: int) -> None:
    """One image in 500, in every seed."""
    found = difference([0.502] * seeds, [0.5] * seeds, resolution=1 / 500)
    assert found.verdict == "can't tell"
    assert found.low is not None and found.low < 0 < found.mean < found.high  # type: ignore[operator]  # as above
    same = difference(A, A)
    assert (same.mean, same.p, same.verdict) == (0.0, 1.0, "can't tell")
    far = difference([0.6] * seeds, [0.5] * seeds, resolution=1 / 500)
    assert far.verdict == "better" and 0 < far.p < 0.01  # type: ignore[operator]  # as above


NULLS: dict[str, Callable[[np.random.Generator, tuple[int, int]], NDArray]] = {
    # Differences in steps of the metric: accuracies of two equal heads rounded to the grid, a few images that only one
    # of them gets right, and one image that always goes to one or the other.
    "rounded, spread 0.3": lambda random, size: rounded(random, size, 0.3),
    "rounded, spread 1": lambda random, size: rounded(random, size, 1.0),
    "rounded, spread 5": lambda random, size: rounded(random, size, 5.0),
    "few images": lambda random, size: random.poisson(0.75, size) - random.poisson(0.75, size),
    "some images": lambda random, size: random.poisson(5, size) - random.poisson(5, size),
    "a coin": lambda random, size: random.choice([-1, 1], size),
}


def rounded(random: np.random.Generator, size: tuple[int, int], spread: float) -> NDArray:
    level = random.uniform(size=(size[0], 1))
    a, b = (np.round(level + random.normal(scale=spread / 2**0.5, size=size)) for _ in range(2))
    return a - b


@pytest.mark.parametrize("seeds", [3, 4, 5, 10])
@pytest.mark.parametrize("null", NULLS)
def test_equal_heads_are_told_apart_in_at_most_one_of_twenty_studies(null: str, seeds: int) -> None:
    trials = 2000
    steps = NULLS[null](np.random.default_rng(0), (trials, seeds)) / 500
    found = compare_pairs(
        [
            Paired(str(i), "a", "b", [0.5 + d for d in row], [0.5] * seeds, 1 / 500)
            for i, row in enumerate(steps.tolist())
        ],
        None,
        0.95,
    )
    called = sum(each.p is not None and each.p < 0.05 for each in found)
    assert called <= stats.binom.ppf(0.9999, trials, 0.05)


def test_other_metrics_and_tasks_do_not_weaken_the_verdict() -> None:
    alone = difference(A, B)
    assert alone.verdict == "better" and alone.p is not None and alone.p > 0.05 / 18
    among = compare_pairs([pair(A, B), *(pair(A, B, f"set/{i}") for i in range(17))], PRIMARY, 0.95)
    assert among[0] == alone
    for other in among[1:]:
        assert other.exploratory and (other.verdict, other.p_adjusted) == (None, None)
        assert (other.low, other.high) == (alone.low, alone.high)


def test_verdicts_and_intervals_of_several_heads_agree() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        shifts = random.normal(scale=0.02, size=3)
        pairs = [pair(list(0.5 + shift + random.normal(scale=0.01, size=4)), [0.5] * 4) for shift in shifts]
        for found in compare_pairs(pairs, PRIMARY, 0.95):
            assert found.low is not None and found.high is not None and found.p_adjusted is not None
            outside = found.low > 0 or found.high < 0
            assert outside == (found.p_adjusted < 0.05) == (found.verdict != "can't tell")
            assert found.verdict in ({"better"} if found.low > 0 else {"worse"} if found.high < 0 else {"can't tell"})


def test_intervals_of_several_heads_hold_at_once() -> None:
    """Three heads against a baseline that they share, none of them different."""
    random, trials, held = np.random.default_rng(1), 1000, 0
    for _ in range(trials):
        base = random.normal(size=5)
        heads = [pair(list(random.normal(size=5)), list(base)) for _ in range(3)]
        held += all(d.low <= 0 <= d.high for d in compare_pairs(heads, PRIMARY, 0.95))  # type: ignore[operator]  # as above
    assert held >= stats.binom.ppf(0.0001, trials, 0.95)


def test_a_family_counts_only_what_has_an_interval() -> None:
    found = compare_pairs([pair(A, B), pair(A[:2], B[:2])], PRIMARY, 0.95)
    assert found[0].p_adjusted == found[0].p and found[1].verdict is None
