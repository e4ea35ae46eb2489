"""Paired t, floor, Holm and verdicts by hand and against scipy; error rates and coverage in simulated studies."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from simulations import ITEMS, accuracies, least, most

from mmrep.study.statistics import correlation_of, holm, least_error, paired_t, pairing_of, verdict_of

A = [0.52, 0.55, 0.51, 0.58, 0.54]
B = [0.50, 0.51, 0.50, 0.53, 0.53]
TRIALS = 20_000
SEEDS = [3, 5, 10, 20]


def test_agrees_with_scipy() -> None:
    found = paired_t(np.subtract(A, B), 1e-4, 0.95)
    test = stats.ttest_rel(A, B)
    interval = test.confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(np.subtract(A, B)))
    assert (found.mean - found.reach, found.mean + found.reach) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(test.pvalue)
    wide = test.confidence_interval(1 - 0.05 / 3)
    assert found.mean + paired_t(np.subtract(A, B), 1e-4, 0.95, contrasts=3).reach == pytest.approx(wide.high)


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_seeds_that_agree_on_one_image_prove_nothing(seeds: int) -> None:
    """One image in 500, in every seed."""
    one = paired_t([1 / 500] * seeds, 1 / 500, 0.95)
    assert one.error == pytest.approx(1 / 500 / 6**0.5) == least_error(1 / 500)
    assert one.mean - one.reach < 0 and one.p > 0.05
    same = paired_t([0.0] * seeds, 1 / 500, 0.95)
    assert (same.mean, same.p) == (0, 1) and same.reach == one.reach
    far = paired_t([0.1] * seeds, 1 / 500, 0.95)
    assert far.mean - far.reach > 0 and 0 < far.p < 0.01


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


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("null", NULLS)
def test_equal_heads_are_told_apart_in_at_most_one_of_twenty_studies(null: str, seeds: int) -> None:
    steps = NULLS[null](np.random.default_rng(0), (TRIALS, seeds)) / ITEMS
    assert (paired_t(steps, 1 / ITEMS, 0.95).p < 0.05).sum() <= most(TRIALS, 0.05, len(NULLS) * len(SEEDS))


def wrong_claims(
    shifts: list[float], seeds: int, ratio: float, kind: str, confidence: float = 0.95, margin: float | None = None,
    trials: int = TRIALS,
) -> dict[str, NDArray]:  # fmt: skip
    """Whether the claims of each simulated study are wrong: intervals, verdicts, equivalence alone. And intervals
    that lie within the margin.

    Interval, verdict and adjusted p-value of every contrast of every study have to agree.
    """
    random = np.random.default_rng([seeds, round(ratio), len(shifts), kind == "t3"])
    runs = accuracies(random, trials, shifts, seeds, ratio, kind)
    truth, family = np.array(shifts), len(shifts)
    found = paired_t(runs[:, 1:] - runs[:, :1], 1 / ITEMS, confidence, family)
    low, high = found.mean - found.reach, found.mean + found.reach
    verdicts = np.array([verdict_of(*each, margin) for each in zip(low.ravel(), high.ravel(), strict=True)])
    verdicts = verdicts.reshape(low.shape)
    decided = (low > 0) | (high < 0)
    assert (np.minimum(1, found.p * family) < 1 - confidence).tolist() == decided.tolist()
    assert (np.isin(verdicts, ["better", "worse"]) == decided).all()
    inside = (np.maximum(-low, high) < margin) if margin is not None else np.zeros_like(decided)
    assert ((verdicts == "equivalent") == (inside & ~decided)).all()
    equivalent = (verdicts == "equivalent") & (np.abs(truth) >= (margin or 0) - 1e-12)
    wrong = ((verdicts == "better") & (truth <= 0)) | ((verdicts == "worse") & (truth >= 0)) | equivalent
    missed = (low > truth) | (high < truth)
    return {"missed": missed.any(1), "wrong": wrong.any(1), "equivalent": equivalent.any(1), "inside": inside.any(1)}


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_one_contrast_has_its_level_exactly(seeds: int, ratio: int) -> None:
    """Whatever the ratio of the seeds' noise to the images'. A true difference is covered as often as none."""
    for shift in (0.0, 0.03):
        missed = wrong_claims([shift], seeds, ratio, "normal")["missed"].sum()
        assert least(TRIALS, 0.05, 24) <= missed <= most(TRIALS, 0.05, 24)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("ratio", [1, 3])
def test_heavy_tails_only_make_it_cautious(seeds: int, ratio: int) -> None:
    """Errors that are t distributed with 3 degrees of freedom: 4.5 to 4.7% false claims."""
    missed = wrong_claims([0.0], seeds, ratio, "t3")["missed"].sum()
    assert 0.04 * TRIALS <= missed <= most(TRIALS, 0.05, 8)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("ratio", [0, pytest.param(1, marks=pytest.mark.long), 3])
@pytest.mark.parametrize("kind", ["normal", pytest.param("t3", marks=pytest.mark.long)])
def test_all_claims_of_a_family_are_right_at_once(seeds: int, ratio: int, kind: str) -> None:
    """Three arms that share a baseline: equal ones, and two of which one is better and one at the margin."""
    for shifts in ([0.0] * 3, [0.0, 0.05, -0.02]):
        found = wrong_claims(shifts, seeds, ratio, kind, margin=0.02)
        assert found["wrong"].sum() <= found["missed"].sum() <= most(TRIALS, 0.05, 48)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("ratio", [0, 1])
def test_heads_at_the_margin_are_seldom_called_equivalent(seeds: int, ratio: int) -> None:
    """The interval has to end before the margin: it does so in 2.5% of studies, and may then still exclude zero."""
    for shift in (0.3, -0.3):
        found = wrong_claims([shift], seeds, ratio, "normal", margin=0.3)
        assert least(TRIALS, 0.025, 16) <= found["inside"].sum() <= most(TRIALS, 0.025, 16)
        assert found["equivalent"].sum() <= found["inside"].sum()
    assert 0 < wrong_claims([0.03], seeds, ratio, "normal", margin=0.03)["equivalent"].sum() <= most(TRIALS, 0.025, 16)


@pytest.mark.long
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("family", [1, 2, 3, 8])
@pytest.mark.parametrize("kind", ["normal", "t3"])
def test_every_level_family_and_error_holds(confidence: float, family: int, kind: str) -> None:
    for seeds in SEEDS:
        for ratio in (0, 1, 3):
            for shift in (0.0, 0.02):
                shifts = [shift] + [0.0] * (family - 1)
                found = wrong_claims(shifts, seeds, ratio, kind, confidence, margin=0.02, trials=5000)
                bound = most(5000, 1 - confidence, 24 * 24)
                assert found["wrong"].sum() <= found["missed"].sum() <= bound, (seeds, ratio, shift)


def test_verdicts_follow_the_interval() -> None:
    assert verdict_of(0.01, 0.02, None) == verdict_of(0.01, 0.02, 0.05) == "better"
    assert verdict_of(-0.02, -0.01, 0.05) == "worse"
    assert verdict_of(-0.01, 0.02, 0.021) == "equivalent"
    assert verdict_of(-0.01, 0.02, 0.02) == verdict_of(-0.02, 0.01, 0.02) == "cannot tell"
    assert verdict_of(-0.01, 0.02, None) == verdict_of(0.0, 0.02, None) == "cannot tell"


def test_holm_by_hand() -> None:
    """4 × 0.01; 3 × 0.012 is less than that; 2 × 0.04; 0.2 once."""
    assert holm([0.04, 0.01, 0.2, 0.012], 4) == pytest.approx([0.08, 0.04, 0.2, 0.04])
    assert holm([0.03, 0.02], 3) == pytest.approx([0.06, 0.06])  # a third contrast has no p-value yet
    assert holm([0.6, 0.5], 2) == [1.0, 1.0]
    assert holm([], 2) == []


def test_correlation_and_pairing() -> None:
    assert correlation_of(A, B) == pytest.approx(stats.pearsonr(A, B).statistic)
    assert pairing_of(A, B) == pytest.approx(np.var(np.subtract(A, B)) / (np.var(A) + np.var(B)))
    assert pairing_of(A, [0.5] * 5) == pytest.approx(1)
    assert pairing_of(A, A) == 0
    for a, b in ((A[:2], B[:2]), ([0.5] * 3, [0.4] * 3)):
        assert correlation_of(a, b) is None and pairing_of(a, b) is None
