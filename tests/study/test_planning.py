"""Numbers of seeds and detectable differences, against the noncentral t and against simulated studies."""

import itertools

import numpy as np
import pytest
from scipy import stats
from simulations import least, most

from mmrep.study.planning import detectable, power_of, power_of_equivalence, seeds_for_equivalence, seeds_needed
from mmrep.study.statistics import least_error, paired_t

TRIALS = 20_000


@pytest.mark.parametrize("seeds", [3, 4, 10, 200])
def test_power_is_that_of_the_noncentral_t(seeds: int) -> None:
    effects = [0.0, 0.3, 1.0] if seeds > 100 else [0.0, 0.3, 1.0, 3.0]  # scipy has no value far out
    for effect, contrasts, confidence in itertools.product(effects, [1, 3], [0.9, 0.99]):
        reach = stats.t.isf((1 - confidence) / 2 / contrasts, seeds - 1)
        away = effect * seeds**0.5 / 2
        by_scipy = stats.nct.sf(reach, seeds - 1, away) + stats.nct.cdf(-reach, seeds - 1, away)
        assert power_of(effect, 2.0, seeds, contrasts, confidence) == pytest.approx(by_scipy, abs=1e-9)


def test_seeds_of_the_textbooks() -> None:
    """Differences of 0.5, 1 and 2 standard deviations with 80% power."""
    assert [seeds_needed(effect, 1.0, 1, 0.95) for effect in (0.5, 1.0, 2.0)] == [34, 10, 5]
    assert [seeds_needed(effect, 1.0, 2, 0.95) for effect in (0.5, 1.0, 2.0)] == [41, 13, 6]
    assert seeds_needed(-1.0, 1.0, 1, 0.95) == 10
    assert seeds_needed(0.01, 1.0, 1, 0.95) is seeds_needed(0.0, 1.0, 1, 0.95) is None
    assert seeds_needed(100.0, 1.0, 1, 0.95) == 3 == seeds_needed(1.0, 0.0, 1, 0.95)
    assert seeds_needed(1.0, 1.0, 1, 0.95, power=0.95) == 16
    assert detectable(1.0, 2, 1, 0.95) is None


@pytest.mark.parametrize("seeds", [3, 5, 10, 20])
@pytest.mark.parametrize("contrasts", [1, 3])
def test_studies_find_what_is_detectable_as_often_as_claimed(seeds: int, contrasts: int) -> None:
    effect = detectable(0.02, seeds, contrasts, 0.95)
    assert effect is not None
    assert seeds_needed(effect * (1 + 1e-6), 0.02, contrasts, 0.95) == seeds
    runs = effect + 0.02 * np.random.default_rng(seeds).normal(size=(TRIALS, seeds))
    found = paired_t(runs, 1e-6, 0.95, contrasts)
    hits = (np.abs(found.mean) > found.reach).sum()
    assert least(TRIALS, 0.8, 8) <= hits <= most(TRIALS, 0.8, 8)


@pytest.mark.parametrize("margin", [0.01, 0.02, 0.04])
@pytest.mark.parametrize("contrasts", [1, 3])
def test_equal_heads_are_found_equivalent_as_often_as_claimed(margin: float, contrasts: int) -> None:
    seeds = seeds_for_equivalence(margin, 0.02, contrasts, 0.95)
    assert seeds is not None
    fewer, power = (power_of_equivalence(margin, 0.02, each, contrasts, 0.95) for each in (seeds - 1, seeds))
    assert fewer < 0.8 <= power
    found = paired_t(0.02 * np.random.default_rng(1).normal(size=(TRIALS, seeds)), 1e-6, 0.95, contrasts)
    hits = (np.abs(found.mean) + found.reach < margin).sum()
    assert least(TRIALS, power, 6) <= hits <= most(TRIALS, power, 6)


def test_resolution_limits_what_can_be_found() -> None:
    """Seeds without any spread still leave the rounding of the metric, which no number of seeds averages out."""
    reach = stats.t.isf(0.025, 4) * least_error(0.002)
    assert detectable(0.0, 5, 1, 0.95, resolution=0.002) == pytest.approx(reach)
    assert seeds_needed(0.001, 1e-6, 1, 0.95, resolution=0.002) is None
    assert seeds_needed(0.0021, 1e-6, 1, 0.95, resolution=0.002) == 6
    assert seeds_for_equivalence(0.001, 1e-6, 1, 0.95, resolution=0.002) is None
    fine, coarse = (power_of(0.01, 0.01, 5, 1, 0.95, resolution) for resolution in (0.0, 0.01))
    runs = 0.01 + 0.01 * np.random.default_rng(2).normal(size=(TRIALS, 5))
    found = paired_t(runs, 0.01, 0.95)
    assert coarse < fine
    assert least(TRIALS, coarse) <= (np.abs(found.mean) > found.reach).sum() <= most(TRIALS, coarse)
