"""What the sections of the report share: results by arm, looks of the arms, the registered contrasts."""

import math
import statistics
from functools import cached_property

from mmrep.study.report.model import Look
from mmrep.study.report.values import Seeds
from mmrep.study.report.words import metric_words
from mmrep.study.results import DifferenceEntry, Results, Run, metrics_of, pools_of

COLOURS, SHAPES = 8, 6


class Facts:
    """A study's results, looked up by arm.

    Attributes:
        results: the content of results.json.
        arms: labels of the arms, the baseline first where it has runs.
        seeds: all seeds of finished runs.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.baseline = results["baseline"]
        self.arms = sorted(pools_of(results), key=lambda pool: pool != self.baseline)
        self.seeds = sorted({run["seed"] for run in results["runs"]})
        self._runs: dict[str, list[Run]] = {arm: [] for arm in self.arms}
        for run in results["runs"]:
            self._runs[run["pool"]].append(run)
        for runs in self._runs.values():
            runs.sort(key=lambda run: run["seed"])
        self._differences = {(d["metric"], d["a"], d["b"]): d for d in results["differences"]}

    @cached_property
    def primary(self) -> str | None:
        """The primary metric, or None where there is none or a run has no number for it."""
        name = self.results["primary"]
        every = [run["metrics"][name] for run in self.results["runs"]] if name is not None else [math.nan]
        return name if all(map(math.isfinite, every)) else None

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Colour and shape of every arm: arms of one head share their colour, and the baseline is grey."""
        heads = list(dict.fromkeys(self.head(arm) for arm in self.arms if arm != self.baseline_of(arm)))
        found, seen = dict[str, Look](), dict.fromkeys([self.baseline, *heads], 0)
        several = len({self.head(arm) for arm in self.arms}) < len(self.arms)
        for arm in self.arms:
            if arm == self.baseline_of(arm):
                found[arm] = Look(0, seen[self.baseline] % SHAPES)
                seen[self.baseline] += 1
                continue
            place = heads.index(self.head(arm))
            shape = seen[self.head(arm)] if several else place // COLOURS
            seen[self.head(arm)] += 1
            found[arm] = Look(1 + place % COLOURS, shape % SHAPES)
        return found

    @property
    def registered(self) -> bool:
        """Whether the claim is the one that the study began with."""
        return self.results.get("registered", True)

    @property
    def complete(self) -> bool:
        """Whether every arm has a run of every seed."""
        return len(self.results["runs"]) == len(self.arms) * len(self.seeds)

    def head(self, arm: str) -> str:
        """Return the head of an arm, without the study's axes."""
        return self._runs[arm][0]["head"]

    def baseline_of(self, arm: str) -> str:
        """Return the arm that an arm is compared with: the baseline's head at the same point of the axes."""
        at = self._runs[arm][0]["at"]
        same = [each for each in self.arms if self.head(each) == self.baseline and self._runs[each][0]["at"] == at]
        return same[0] if same else self.baseline

    def runs(self, arm: str) -> list[Run]:
        """Return the finished runs of an arm, by seed."""
        return self._runs[arm]

    def values(self, arm: str, metric: str) -> Seeds:
        """Return an arm's values in a metric, seed by seed."""
        runs = self._runs.get(arm, [])
        return Seeds(tuple(run["seed"] for run in runs), tuple(run["metrics"][metric] for run in runs))

    def mean(self, arm: str, metric: str) -> float:
        """Return an arm's mean over seeds."""
        return statistics.fmean(self.values(arm, metric).values)

    def spread(self, arm: str, metric: str) -> float | None:
        """Return the standard deviation over seeds, or None for a single one."""
        values = self.values(arm, metric).values
        return statistics.stdev(values) if len(values) > 1 else None

    def cost(self, arm: str, name: str) -> float:
        """Return an arm's cost, mean over seeds."""
        return statistics.fmean(run["cost"][name] for run in self._runs[arm])

    def difference(self, metric: str | None, a: str, b: str) -> DifferenceEntry | None:
        """Return the difference a − b in a metric, or None where there is none."""
        return self._differences.get((metric or "", a, b))

    @cached_property
    def contrasts(self) -> list[DifferenceEntry]:
        """The differences of the registered contrasts in the primary metric."""
        pairs = [(each["a"], each["b"]) for each in self.results["contrasts"]]
        found = [self.difference(self.primary, *pair) for pair in pairs]
        return [each for each in found if each is not None and not each["exploratory"]]

    @cached_property
    def metrics(self) -> list[str]:
        """All metrics whose values are numbers in every run, the primary one first."""
        names = metrics_of(self.results, primary=False)
        runs = self.results["runs"]
        found = [name for name in names if all(math.isfinite(run["metrics"][name]) for run in runs)]
        return sorted(found, key=lambda name: name != self.primary)

    @property
    def main_metric(self) -> str | None:
        """The primary metric or, where there is none, the first of the main ones."""
        main = metrics_of(self.results, primary=True)
        return self.primary or next((name for name in main if name in self.metrics), None)

    def chosen(self, limit: int) -> list[str]:
        """Return at most so many arms for a figure: the baseline, arms of contrasts, then the best ones."""
        if len(self.arms) <= limit:
            return self.arms
        metric = self.main_metric
        ranked = sorted(self.arms, key=lambda arm: -self.mean(arm, metric) if metric else 0)
        asked = [arm for each in self.contrasts for arm in (each["a"], each["b"])]
        few = list(dict.fromkeys(asked)) if len(set(asked)) <= limit else []
        wanted = list(dict.fromkeys([self.baseline, *few, *ranked]))[:limit]
        return [arm for arm in self.arms if arm in wanted]


def points(value: float) -> int:
    """Return the decimals that a difference in percentage points deserves: two where it is small."""
    return 1 if abs(100 * value) >= 0.5 else 2


def named(metric: str) -> str:
    """Return the plain name of a metric, with its set."""
    place, word = metric_words(metric)
    return f"{place} {word}"
