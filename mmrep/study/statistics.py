"""Paired differences between heads. The unit of inference is the training run: differences are taken seed by seed.

A bootstrap over test images alone calls half of all null differences real when seeds vary more than images do, and
an exact sign-flip test can't reach 5% with 5 seeds; the t interval over seeds holds its level with 3 or more.
"""

import math
from typing import NamedTuple

MIN_SEEDS = 3
METHOD = "paired t over seeds, Holm-adjusted"
NO_VERDICT = f"difference of means; fewer than {MIN_SEEDS} seeds, so no interval and no verdict"


class Difference(NamedTuple):
    """How head `a` differs from head `b` in a metric.

    Attributes:
        metric: `DATASET/METRIC`.
        a: label of a head.
        b: label of the baseline.
        mean: of a − b over the seeds.
        low: lower end of the confidence interval; None below 3 seeds.
        high: upper end.
        p: two-sided p-value.
        p_adjusted: after Holm's step-down over all differences of the study.
        method: how low, high and p were found.
        seeds: number of paired seeds.
        verdict: `better`, `worse`, `can't tell`; None below 3 seeds.
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


def paired_difference(
    metric: str, a: str, b: str, values_a: list[float], values_b: list[float], confidence: float
) -> Difference:
    """The difference of two heads over the seeds both have, without adjustment and verdict.

    Args:
        metric: its name.
        a: label of the head.
        b: label of the baseline.
        values_a: the metric of head `a`, seed by seed.
        values_b: of head `b`, for the same seeds in the same order.
        confidence: level of the interval.
    """
    differences = [x - y for x, y in zip(values_a, values_b, strict=True)]
    count = len(differences)
    mean = math.fsum(differences) / count
    if count < MIN_SEEDS:
        return Difference(metric, a, b, mean, None, None, None, None, NO_VERDICT, count, None)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (count - 1) / count)
    if error == 0:
        # All seeds agree to the last digit: no spread to judge by, unless nothing differs at all.
        return Difference(metric, a, b, mean, mean, mean, 1.0 if mean == 0 else 0.0, None, METHOD, count, None)
    from scipy.special import stdtr, stdtrit

    reach = float(stdtrit(count - 1, 0.5 + confidence / 2)) * error
    p = 2 * float(stdtr(count - 1, -abs(mean / error)))
    return Difference(metric, a, b, mean, mean - reach, mean + reach, p, None, METHOD, count, None)


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down adjustment: controls the chance of any false positive among all (Holm 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        adjusted[position] = largest
    return adjusted


def judge(differences: list[Difference], confidence: float) -> list[Difference]:
    """The same differences with adjusted p-values and verdicts."""
    tested = [i for i, difference in enumerate(differences) if difference.p is not None]
    adjusted = dict(zip(tested, holm([float(differences[i].p or 0.0) for i in tested]), strict=True))
    judged = []
    for i, difference in enumerate(differences):
        if i in adjusted:
            verdict = "can't tell"
            if adjusted[i] < 1 - confidence:
                verdict = "better" if difference.mean > 0 else "worse"
            difference = difference._replace(p_adjusted=adjusted[i], verdict=verdict)
        judged.append(difference)
    return judged
