"""Paired differences between heads. The unit of inference is the training run: differences are taken for each seed.

Where seeds vary more than images, a bootstrap over test images alone declares half of all null differences real. An
exact sign-flip test cannot reach 5% with 5 seeds. The t interval over seeds holds its level with 3 seeds or more.

Verdicts are about one metric, the study's primary one; the comparisons of all heads with the baseline in it are one
family. All other metrics are exploratory: they have intervals of single differences, and no verdict.

A metric of n test items moves in steps of q = 1/n. Rounding to these steps adds an error of variance 2 · q²/12 to a
difference of two values. All seeds are tested on the same items, so they may share this error, and it does not
average out. Therefore the standard error of a mean difference is taken to be at least q/√6. Without this floor, seeds
that agree to the last digit would have no spread, and one item would be a proof. With it, the level holds in the
simulations of tests/study/test_statistics.py for rounded, sparse and coin-flip differences, with 3 seeds and more.
"""

import math
from typing import NamedTuple

MIN_SEEDS = 3
METHOD = "paired t over seeds"
NO_VERDICT = f"difference of means; fewer than {MIN_SEEDS} seeds, so no interval and no verdict"


class Difference(NamedTuple):
    """The difference of head `a` to head `b` in a metric.

    Attributes:
        metric: `DATASET/METRIC`.
        a: label of a head.
        b: label of the baseline.
        mean: mean of a − b over the seeds.
        low: lower end of the confidence interval, or None below 3 seeds. Intervals of the primary metric hold
            simultaneously for all its contrasts, other ones for this difference alone.
        high: upper end of the interval.
        p: two-sided p-value of this difference alone.
        p_adjusted: p-value adjusted for all contrasts of the primary metric; None for other metrics.
        method: method that low, high and p come from.
        seeds: number of paired seeds.
        verdict: `better`, `worse` or `can't tell`; None below 3 seeds and for exploratory metrics.
        exploratory: whether the metric is not the primary one.
    """

    metric: str
    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    method: str
    seeds: int
    verdict: str | None
    exploratory: bool


class Paired(NamedTuple):
    """The values of two heads in a metric, seed by seed in the same order.

    Attributes:
        metric: `DATASET/METRIC`.
        a: label of the head.
        b: label of the baseline.
        values_a: values of head `a`.
        values_b: values of head `b`.
        resolution: the step that the metric moves in, 1/n for n test items.
    """

    metric: str
    a: str
    b: str
    values_a: list[float]
    values_b: list[float]
    resolution: float

    @property
    def differences(self) -> list[float]:
        """The differences a − b, one for each seed."""
        return [x - y for x, y in zip(self.values_a, self.values_b, strict=True)]


def standard_error(differences: list[float], resolution: float) -> float:
    """Return the standard error of a mean of paired differences, at least `resolution`/√6 (see the module)."""
    count = len(differences)
    mean = math.fsum(differences) / count
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    return max(spread, resolution / math.sqrt(6))


def compare_pairs(pairs: list[Paired], primary: str | None, confidence: float) -> list[Difference]:
    """Return differences with intervals, and verdicts on the primary metric.

    The m contrasts of the primary metric are judged together (Bonferroni): intervals have level 1 − (1 − confidence)/m
    and hold simultaneously, p-values are multiplied by m, and there is a verdict where the interval excludes zero.
    Holm's step-down would reject slightly more, but has no simultaneous intervals that agree with its verdicts.

    Args:
        pairs: values of each head and the baseline in every metric.
        primary: the primary metric; with None all metrics are exploratory.
        confidence: level of the intervals.
    """
    family = sum(pair.metric == primary and len(pair.values_a) >= MIN_SEEDS for pair in pairs)
    return [_difference(pair, family if pair.metric == primary else None, confidence) for pair in pairs]


def _difference(pair: Paired, family: int | None, confidence: float) -> Difference:
    """Return one difference. `family` is the number of contrasts judged together, or None for an exploratory metric."""
    differences = pair.differences
    count, mean = len(differences), math.fsum(differences) / len(differences)
    names = (pair.metric, pair.a, pair.b, mean)
    if count < MIN_SEEDS:
        return Difference(*names, None, None, None, None, NO_VERDICT, count, None, family is None)
    from scipy.special import stdtr, stdtrit

    error, contrasts = standard_error(differences, pair.resolution), family or 1
    reach = float(stdtrit(count - 1, 1 - (1 - confidence) / (2 * contrasts))) * error
    p = 2 * float(stdtr(count - 1, -abs(mean / error)))
    if family is None:
        return Difference(*names, mean - reach, mean + reach, p, None, METHOD, count, None, True)
    adjusted = min(1.0, p * family)
    decided = adjusted < 1 - confidence
    verdict = ("better" if mean > 0 else "worse") if decided else "can't tell"
    method = f"{METHOD}, simultaneous over {family} contrast{'s' if family > 1 else ''}"
    return Difference(*names, mean - reach, mean + reach, p, adjusted, method, count, verdict, False)
