"""Paired differences between arms of a study. The unit of inference is the seed: differences are taken for each one.

Where seeds vary more than images, a bootstrap over test images alone declares half of all null differences real. An
exact sign-flip test cannot reach 5% with 5 seeds. The t interval over seeds holds its level with 3 seeds or more.

**Family.** Verdicts are about the pre-registered contrasts of one metric, the primary one. They are judged together, so
that all their verdicts are right at once with the study's confidence. All other comparisons are exploratory: they have
the interval of a single difference, and no verdict.

**Equivalence.** A contrast with a margin is equivalent if its interval lies within ± margin. The interval is the one
shown, so one statement (the interval holds) backs every verdict. It is stricter than the usual pair of one-sided tests,
which uses the 90% interval (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987).

**Bonferroni decides, Holm stands next to it.** Intervals of m contrasts have level 1 − (1 − confidence)/m each and hold
simultaneously; p-values are multiplied by m; verdicts follow the intervals, so the three never contradict each other.
Holm's step-down p-values are reported too. They cannot decide, because no informative intervals agree with them. Take
two contrasts, one without a true difference and one with a large one. Holm rejects the second one nearly always, and
then tests the first at the full 5%. That is all the error there is: whenever the first is not rejected, the interval of
the second must never miss, so its lower end has to fall to zero. This is what the intervals that belong to Holm do
(Strassburger & Bretz, Statist. Med. 27, 2008; Guilbaud, Biometrical J. 50, 2008). Bonferroni's intervals next to Holm's
verdicts would hold in 92.5% of studies instead of 95%. Compromises, which keep some information by giving up some of
Holm's power (Brannath & Schmidt, Statist. Med. 33, 2014), also have to protect the direction that a verdict states. For
two contrasts and 10 seeds that leaves at most 7% shorter intervals for the second contrast.

**Floor.** A metric of n test items moves in steps of q = 1/n. Rounding to these steps adds an error of variance
2 · q²/12 to a difference of two values. All seeds are tested on the same items, so they may share this error, and it
does not average out. Therefore the standard error of a mean difference is taken to be at least q/√6. Without this
floor, seeds that agree to the last digit would have no spread, and one item would be a proof. With it, the level holds
in the simulations of tests/study/test_statistics.py for rounded, sparse and coin-flip differences, with 3 seeds and
more.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

MIN_SEEDS = 3
METHOD = "paired t over seeds"
NO_VERDICT = f"difference of means; fewer than {MIN_SEEDS} seeds, so no interval and no verdict"
CANNOT_TELL = "cannot tell"


class Interval(TypedDict):
    """A confidence interval."""

    low: float
    high: float


class Parts(TypedDict):
    """What seeds, images and both together contribute to the squared standard error, as shares of it."""

    seeds: float
    images: float
    both: float


class NewImages(TypedDict):
    """The uncertainty of a mean difference if seeds and test images were drawn anew."""

    low: float
    high: float
    p: float
    df: float
    se: float
    parts: Parts


class Difference(NamedTuple):
    """The difference of arm `a` to arm `b` in a metric, a − b.

    Attributes:
        metric: `SET/METRIC`.
        a: label of an arm.
        b: label of the arm that it is compared to.
        mean: mean of a − b over the seeds.
        low: lower end of the confidence interval, or None below 3 seeds. Intervals of pre-registered contrasts hold
            simultaneously, other ones for this difference alone.
        high: upper end of the interval.
        p: two-sided p-value of this difference alone.
        p_adjusted: p-value that agrees with the simultaneous interval (Bonferroni); None for exploratory differences.
        p_holm: p-value of Holm's step-down test, for information; None for exploratory differences.
        method: method that low, high and p come from.
        seeds: number of paired seeds.
        verdict: `better`, `worse`, `equivalent` or `cannot tell`; None below 3 seeds and for exploratory differences.
        exploratory: whether this is no pre-registered contrast of the primary metric.
        margin: differences up to this one count as equivalent.
        target: the difference that `seeds_needed` is about: the margin, else `study.primary.detect`.
        seeds_needed: seeds that find a true difference of `target` with 80% power, given the spread seen.
        detectable: the smallest true difference that this many seeds find with 80% power.
        sd: standard deviation of the differences over seeds, at least what the metric's resolution allows.
        correlation: correlation of the two arms' values over seeds.
        pairing: variance of the paired difference as a share of the variance that unpaired runs would have.
        differences: a − b for each seed.
        seed_list: the seeds, in this order.
        new_images: see `mmrep.study.images.crossed`.
        these_checkpoints: see `mmrep.study.images.bootstrap`.
    """

    metric: str
    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    p_holm: float | None
    method: str
    seeds: int
    verdict: str | None
    exploratory: bool
    margin: float | None
    target: float
    seeds_needed: int | None
    detectable: float | None
    sd: float | None
    correlation: float | None
    pairing: float | None
    differences: list[float]
    seed_list: list[int]
    new_images: NewImages | None
    these_checkpoints: Interval | None


class Estimate(NamedTuple):
    """Means of paired differences, of one study or an array of them.

    Attributes:
        mean: mean over seeds.
        error: its standard error, at least what the metric's resolution allows.
        reach: half-width of the interval.
        p: two-sided p-value of each mean alone.
    """

    mean: NDArray[np.float64]
    error: NDArray[np.float64]
    reach: NDArray[np.float64]
    p: NDArray[np.float64]


def least_error(resolution: float) -> float:
    """Return the least standard error of a mean difference in a metric that moves in steps of `resolution`."""
    return resolution / math.sqrt(6)


def paired_t(differences: ArrayLike, resolution: float, confidence: float, contrasts: int = 1) -> Estimate:
    """Return the t interval of means over the last axis ("Student", Biometrika 6, 1908).

    Args:
        differences: paired differences, seeds last.
        resolution: the step that the metric moves in; see the module for the floor that it sets.
        confidence: simultaneous level of the intervals.
        contrasts: number of intervals that hold at once (Bonferroni; Dunn, J. Am. Stat. Assoc. 56, 1961).
    """
    from scipy.special import stdtr, stdtrit

    values = np.asarray(differences, dtype=np.float64)
    seeds = values.shape[-1]
    mean = values.mean(-1)
    error = np.maximum(values.std(-1, ddof=1) / math.sqrt(seeds), least_error(resolution))
    reach = -stdtrit(seeds - 1, (1 - confidence) / (2 * contrasts)) * error
    return Estimate(mean, error, reach, 2 * stdtr(seeds - 1, -np.abs(mean / error)))


def verdict_of(low: float, high: float, margin: float | None) -> str:
    """Return what an interval says: it excludes zero, else it lies within ± margin, else nothing."""
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    within = margin is not None and -margin < low and high < margin
    return "equivalent" if within else CANNOT_TELL


def holm(p: Sequence[float], contrasts: int) -> list[float]:
    """Return the p-values of Holm's step-down test (Scand. J. Stat. 6, 1979), in the order of `p`.

    Args:
        p: p-values of single contrasts.
        contrasts: size of the family. Contrasts without a p-value yet count as the last ones.
    """
    adjusted, largest = [1.0] * len(p), 0.0
    for step, place in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (contrasts - step) * p[place]))
        adjusted[place] = largest
    return adjusted


def correlation_of(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Pearson's correlation; None below MIN_SEEDS, or where all values of an arm are equal."""
    if len(a) < MIN_SEEDS or max(a) == min(a) or max(b) == min(b):
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))


def pairing_of(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Var(a − b) / (Var(a) + Var(b)), the paired variance as a share of the unpaired one.

    None below MIN_SEEDS, or where neither arm varies.
    """
    if len(a) < MIN_SEEDS or (max(a) == min(a) and max(b) == min(b)):
        return None
    return float(np.var(np.subtract(a, b)) / (np.var(a) + np.var(b)))
