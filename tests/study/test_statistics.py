"""Paired differences against scipy, Holm against its definition, verdicts only where seeds allow them."""

import math

import numpy as np
import pytest
from scipy import stats

from mmrep.study.statistics import NO_VERDICT, Difference, holm, judge, paired_difference

A = [0.52, 0.55, 0.51, 0.58, 0.54]
B = [0.50, 0.51, 0.50, 0.53, 0.53]


def difference(a: list[float], b: list[float], confidence: float = 0.95) -> Difference:
    return paired_difference("set/acc1", "ggem", "avg", a, b, confidence)


def test_agrees_with_scipy() -> None:
    found = difference(A, B)
    test = stats.ttest_rel(A, B)
    interval = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(A, B)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(test.pvalue)
    assert found.seeds == 5
    assert difference(A, B, 0.9).high < found.high  # type: ignore[operator]


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_verdict(seeds: int) -> None:
    found = judge([difference(A[:seeds], B[:seeds])], 0.95)[0]
    assert found.mean == pytest.approx(np.mean(np.subtract(A[:seeds], B[:seeds])))
    assert (found.low, found.high, found.p, found.p_adjusted, found.verdict) == (None,) * 5
    assert found.method == NO_VERDICT


def test_no_spread() -> None:
    same, shifted = difference(A, A), difference([0.5] * 3, [0.25] * 3)
    assert (same.mean, same.p) == (0.0, 1.0)
    assert (shifted.mean, shifted.p) == (0.25, 0.0)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_verdicts_follow_the_adjusted_p() -> None:
    sure = [1.0, 1.01, 0.99, 1.0, 1.02], [0.0] * 5
    found = judge([difference(*sure), difference(*reversed(sure))], 0.95)
    assert [d.verdict for d in found] == ["better", "worse"]
    noise = [0.1, -0.1, 0.05, -0.02, 0.03]
    assert judge([difference(noise, [0.0] * 5)], 0.95)[0].verdict == "can't tell"
    p = difference(A, B).p
    assert p is not None and 0.05 / 3 < p < 0.05
    alone, among = judge([difference(A, B)], 0.95), judge([difference(A, B)] * 3, 0.95)
    assert alone[0].verdict == "better"
    assert among[0].verdict == "can't tell"
    assert among[0].p_adjusted == pytest.approx(3 * p)


def test_false_positives_keep_their_level() -> None:
    generator = np.random.default_rng(0)
    trials, seeds, called = 2000, 4, 0
    for _ in range(trials):
        shared = generator.normal(size=seeds)
        a, b = (list(shared + generator.normal(size=seeds)) for _ in range(2))
        called += judge([difference(a, b)], 0.95)[0].verdict != "can't tell"
    assert called / trials == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))
