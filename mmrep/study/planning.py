"""The number of seeds that a study needs, and the differences that its seeds can show.

Errors of the paired differences are taken as normal with standard deviation `sd`. The t statistic of a true difference
δ over S seeds then has the noncentral t distribution with S − 1 degrees of freedom and noncentrality δ √S / sd
(Johnson, Kotz & Balakrishnan, Continuous Univariate Distributions 2, 2nd ed., ch. 31). Its tails are integrated over
the estimated standard deviation, which is chi distributed: that also works far out, has the floor that the metric's
resolution sets (see `mmrep.study.statistics`), and extends to equivalence.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmrep.study.statistics import MIN_SEEDS, least_error

POWER = 0.8
MOST_SEEDS = 10_000
_NODES = 96
_TAIL = 1e-13
"""Probability on either side of the integrals that is left out."""


def seeds_needed(
    effect: float, sd: float, contrasts: int, confidence: float, power: float = POWER, resolution: float = 0.0
) -> int | None:
    """Return the number of seeds with which a true difference is found with this power, or None above MOST_SEEDS.

    Args:
        effect: the true difference.
        sd: standard deviation of the paired differences over seeds.
        contrasts: number of contrasts judged together.
        confidence: simultaneous level of their intervals.
        power: probability that the interval of the difference excludes zero.
        resolution: the step that the metric moves in.
    """
    return _fewest(lambda seeds: power_of(effect, sd, seeds, contrasts, confidence, resolution), power)


def seeds_for_equivalence(
    margin: float, sd: float, contrasts: int, confidence: float, power: float = POWER, resolution: float = 0.0
) -> int | None:
    """Return the number of seeds with which equal heads are found equivalent, or None above MOST_SEEDS.

    Args:
        margin: differences up to this one count as equivalent; the true difference is taken as 0.
        sd: see `seeds_needed`, as for all others.
        contrasts: number of contrasts judged together.
        confidence: simultaneous level of their intervals.
        power: probability that the interval lies within ± margin.
        resolution: the step that the metric moves in.
    """
    return _fewest(lambda seeds: power_of_equivalence(margin, sd, seeds, contrasts, confidence, resolution), power)


def detectable(
    sd: float, seeds: int, contrasts: int, confidence: float, power: float = POWER, resolution: float = 0.0
) -> float | None:
    """Return the smallest true difference that this many seeds find with this power; None below MIN_SEEDS.

    Args:
        sd: see `seeds_needed`, as for all others.
        seeds: number of seeds.
        contrasts: number of contrasts judged together.
        confidence: simultaneous level of their intervals.
        power: probability that the interval of the difference excludes zero.
        resolution: the step that the metric moves in.
    """
    if seeds < MIN_SEEDS:
        return None
    low, high = 0.0, max(sd / math.sqrt(seeds), least_error(resolution), np.finfo(float).tiny)
    while power_of(high, sd, seeds, contrasts, confidence, resolution) < power:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        found = power_of(middle, sd, seeds, contrasts, confidence, resolution) >= power
        low, high = (low, middle) if found else (middle, high)
    return high


def power_of(effect: float, sd: float, seeds: int, contrasts: int, confidence: float, resolution: float = 0.0) -> float:
    """Return the probability that the interval of a true difference `effect` excludes zero; see `seeds_needed`."""
    reach, weights, error = _reach(sd, seeds, contrasts, confidence, resolution)
    from scipy.special import ndtr

    return float(weights @ (ndtr((effect - reach) / error) + ndtr((-effect - reach) / error)))


def power_of_equivalence(
    margin: float, sd: float, seeds: int, contrasts: int, confidence: float, resolution: float = 0.0
) -> float:
    """Return the probability that the interval lies within ± `margin` where the true difference is zero.

    The interval of a mean m and a half-width r does so if |m| < margin − r (Schuirmann, J. Pharmacokinet. Biopharm. 15,
    1987, for the two one-sided tests that this is).
    """
    reach, weights, error = _reach(sd, seeds, contrasts, confidence, resolution)
    from scipy.special import ndtr

    return float(weights @ np.maximum(2 * ndtr((margin - reach) / error) - 1, 0))


def _fewest(power_with: Callable[[int], float], power: float) -> int | None:
    """Return the smallest number of seeds that has the power, which rises with their number."""
    counts = range(MIN_SEEDS, MOST_SEEDS + 1)
    place = bisect_left(counts, power, key=power_with)
    return counts[place] if place < len(counts) else None


def _reach(
    sd: float, seeds: int, contrasts: int, confidence: float, resolution: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return half-widths that the interval may have, their probabilities, and the true standard error of the mean."""
    from scipy.special import stdtrit

    error = max(sd / math.sqrt(seeds), np.finfo(float).tiny)
    ratios, weights = _estimates(seeds - 1)
    quantile = -float(stdtrit(seeds - 1, (1 - confidence) / (2 * contrasts)))
    return quantile * np.maximum(error * ratios, least_error(resolution)), weights, error


@lru_cache(maxsize=256)
def _estimates(df: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return nodes and weights to integrate over the ratio of an estimated standard deviation to the true one."""
    from scipy.special import chdtri

    low, high = (math.sqrt(chdtri(df, tail) / df) for tail in (1 - _TAIL, _TAIL))
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    ratios = low + (high - low) * (nodes + 1) / 2
    density = (df - 1) * np.log(ratios) - df * np.square(ratios) / 2
    mass = weights * np.exp(density - density.max())
    return ratios, mass / mass.sum()
