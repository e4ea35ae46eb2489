"""Paired differences between heads. The unit of inference is the training run: differences are taken seed by seed.

A bootstrap over test images alone calls half of all null differences real when seeds vary more than images do, and
an exact sign-flip test can't reach 5% with 5 seeds; the t interval over seeds holds its level with 3 or more.

Verdicts are about one metric, the study's primary one: a comparison of every head with the baseline in it is one
family. All other metrics are exploratory: they have an interval of their own, and no verdict.

A metric of n test items moves in steps of q = 1/n. Rounding to that grid moves a difference of two values by an error
of variance 2 · q²/12, and since the items are the same for all seeds, so can the error be: it does not average out. So
the standard error of a mean difference is never taken for less than q/√6. Without that floor, seeds that agree to the
last digit have no spread, and one item is proof (with it, the level holds in the simulations of
tests/study/test_statistics.py for rounded, sparse and coin-flip differences, with 3 seeds and more).
"""

import math
from typing import NamedTuple

MIN_SEEDS = 3
METHOD = "paired t over seeds"
NO_VERDICT = f"difference of means; fewer than {MIN_SEEDS} seeds, so no interval and no verdict"


class Difference(NamedTuple):
    """How head `a` differs from head `b` in a metric.

    Attributes:
        metric: `DATASET/METRIC`.
        a: label of a head.
        b: label of the baseline.
        mean: of a − b over the seeds.
        low: lower end of the confidence interval: of the primary metric simultaneous over its contrasts, else of this
            difference alone. None below 3 seeds.
        high: upper end.
        p: two-sided p-value of this difference alone.
        p_adjusted: for the contrasts of the primary metric; None for others.
        method: how low, high and p were found.
        seeds: number of paired seeds.
        verdict: `better`, `worse`, `can't tell`; None below 3 seeds, and for metrics that are not the primary one.
        exploratory: whether the metric is another than the primary one.
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
        values_a: of head `a`.
        values_b: of head `b`.
        resolution: the step that the metric moves in, 1/n for n test items; above 0.
    """

    metric: str
    a: str
    b: str
    values_a: list[float]
    values_b: list[float]
    resolution: float

    @property
    def differences(self) -> list[float]:
        """a − b of each seed."""
        return [x - y for x, y in zip(self.values_a, self.values_b, strict=True)]


def standard_error(differences: list[float], resolution: float) -> float:
    """Return the standard error of a mean of paired differences, at least `resolution`/√6 (see the module)."""
    count = len(differences)
    mean = math.fsum(differences) / count
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    return max(spread, resolution / math.sqrt(6))


def compare_pairs(pairs: list[Paired], primary: str | None, confidence: float) -> list[Difference]:
    """Return differences with intervals, and verdicts on the primary metric.

    The m contrasts of the primary metric are judged together: intervals at level 1 − (1 − confidence)/m hold at once
    (Bonferroni), p-values are multiplied by m, and a verdict is given where the interval leaves out zero. Holm's
    step-down would reject a little more from the second contrast on, but has no two-sided simultaneous intervals that
    agree with its verdicts.

    Args:
        pairs: each head against the baseline, in every metric.
        primary: the primary metric; None: there is none, and all are exploratory.
        confidence: level of the intervals.
    """
    family = sum(pair.metric == primary and len(pair.values_a) >= MIN_SEEDS for pair in pairs)
    return [_difference(pair, family if pair.metric == primary else None, confidence) for pair in pairs]


def _difference(pair: Paired, family: int | None, confidence: float) -> Difference:
    """Return one difference; `family` is the number of contrasts judged with it, None for an exploratory one."""
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
