"""Simulated studies, many at a time, and the bounds that their error rates have to keep."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats

ITEMS = 500
IMAGE_ERROR = (0.25 / ITEMS) ** 0.5
"""Standard error of an accuracy of one half over ITEMS images."""


def errors(random: np.random.Generator, kind: str, size: tuple[int, ...]) -> NDArray:
    """Errors of mean 0 and variance 1."""
    return random.standard_t(3, size) / 3**0.5 if kind == "t3" else random.normal(size=size)


def accuracies(
    random: np.random.Generator, trials: int, shifts: list[float], seeds: int, ratio: float, kind: str
) -> NDArray:
    """Accuracies of a baseline and of arms that are better by `shifts`: trials × (1 + arms) × seeds.

    The error of a run is that of its test images (binomial), and that of its seed, which is `ratio` times as large.
    """
    shape = (trials, 1 + len(shifts), seeds)
    level = 0.5 + np.array([0.0, *shifts])[:, None] + ratio * IMAGE_ERROR * errors(random, kind, shape)
    return random.binomial(ITEMS, level.clip(0, 1)) / ITEMS


def most(trials: int, rate: float, cells: int = 1) -> float:
    """The largest count that `cells` binomial ones of this rate all keep with 99% probability."""
    return float(stats.binom.ppf(1 - 0.005 / cells, trials, rate))


def least(trials: int, rate: float, cells: int = 1) -> float:
    """The smallest such count."""
    return float(stats.binom.ppf(0.005 / cells, trials, rate))
