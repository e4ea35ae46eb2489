"""The comparisons of a study: pre-registered contrasts in the primary metric, and exploratory ones in all the rest."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrep.config.study import Contrast
from mmrep.study import statistics
from mmrep.study.images import Outcomes, bootstrap, crossed, usable
from mmrep.study.planning import detectable, seeds_needed
from mmrep.study.statistics import MIN_SEEDS, Difference

LOG = logging.getLogger("mmrep")

ReadOutcomes = Callable[[str, int, str], Outcomes | None]
"""Returns the outcomes of an arm with a seed in `SET/METRIC`, or None."""


def compare_arms(
    entries: Sequence[Mapping[str, Any]],
    contrasts: Sequence[Contrast],
    others: Sequence[tuple[str, str]],
    primary: str | None,
    confidence: float,
    detect: float,
    outcomes: ReadOutcomes | None = None,
) -> list[Difference]:
    """Return the differences of a study, metric after metric, over the seeds that both arms have.

    The contrasts of the primary metric are one family. It has their number, however many have runs yet: neither a
    failed run nor an interim look changes the level. The same pairs in other metrics, and all other pairs, are
    exploratory. A difference with a value that is not finite is left out with a warning.

    Args:
        entries: the finished runs; `pool`, `seed`, `metrics` and `items` of each are read.
        contrasts: the pre-registered contrasts.
        others: further pairs of arms, such as each arm and its baseline. Those that are contrasts are left out.
        primary: the primary metric; with None all differences are exploratory.
        confidence: level of the intervals.
        detect: the difference that `seeds_needed` is about where a contrast has no margin.
        outcomes: reads the outcomes of single images; without it there is no uncertainty over images.
    """
    study = _Study(entries, len(contrasts), confidence, detect, outcomes)
    known = {frozenset((contrast.a, contrast.b)) for contrast in contrasts}
    more = [Contrast(a, b) for a, b in dict.fromkeys(others) if a != b and frozenset((a, b)) not in known]
    found = []
    for metric in dict.fromkeys(name for entry in entries for name in entry["metrics"]):
        judged = metric == primary
        pairs = [(contrast, judged) for contrast in contrasts] + [(other, False) for other in more]
        found += [each for contrast, own in pairs if (each := study.difference(contrast, metric, own)) is not None]
        study.forget()
    tested = {place: each.p for place, each in enumerate(found) if not each.exploratory and each.p is not None}
    stepped = statistics.holm(list(tested.values()), len(contrasts))
    for place, p in zip(tested, stepped, strict=True):
        found[place] = found[place]._replace(p_holm=p)
    return found


class _Study:
    """The runs of a study, and what all its differences share."""

    def __init__(
        self,
        entries: Sequence[Mapping[str, Any]],
        contrasts: int,
        confidence: float,
        detect: float,
        outcomes: ReadOutcomes | None,
    ) -> None:
        self._runs: dict[str, dict[int, Mapping[str, Any]]] = {}
        for entry in entries:
            self._runs.setdefault(entry["pool"], {})[entry["seed"]] = entry
        self._contrasts, self._confidence, self._detect = contrasts, confidence, detect
        self._outcomes = outcomes
        self._read: dict[tuple[str, int], Outcomes | None] = {}

    def forget(self) -> None:
        """Free the outcomes of the last metric."""
        self._read.clear()

    def difference(self, contrast: Contrast, metric: str, judged: bool) -> Difference | None:
        """Return a difference, or None where no seed has both arms or a value is not finite."""
        a, b = (
            {seed: run for seed, run in self._runs.get(pool, {}).items() if metric in run["metrics"]}
            for pool in contrast[:2]
        )
        seeds = sorted(a.keys() & b.keys())
        for pool, runs in ((contrast.a, a), (contrast.b, b)):
            broken = [seed for seed in seeds if not math.isfinite(runs[seed]["metrics"][metric])]
            if broken:
                LOG.warning(
                    "%s − %s in %s is left out: %s of seed %d has %s", contrast.a, contrast.b, metric, pool,
                    broken[0], runs[broken[0]]["metrics"][metric],
                )  # fmt: skip
                return None
        if not seeds:
            return None
        items = min(runs[seed]["items"][metric] for runs in (a, b) for seed in seeds)
        values = [[float(runs[seed]["metrics"][metric]) for seed in seeds] for runs in (a, b)]
        return self._of_values(contrast, metric, judged, seeds, values[0], values[1], 1 / items)

    def _of_values(
        self, contrast: Contrast, metric: str, judged: bool, seeds: list[int],
        a: list[float], b: list[float], resolution: float,
    ) -> Difference:  # fmt: skip
        """Return the difference of values in the order of `seeds`."""
        differences = [x - y for x, y in zip(a, b, strict=True)]
        margin = contrast.margin if judged else None
        found = Difference(
            metric, contrast.a, contrast.b, math.fsum(differences) / len(seeds),
            low=None, high=None, p=None, p_adjusted=None, p_holm=None, method=statistics.NO_VERDICT,
            seeds=len(seeds), verdict=None, exploratory=not judged, margin=margin,
            target=self._detect if margin is None else margin, seeds_needed=None, detectable=None, sd=None,
            correlation=statistics.correlation_of(a, b), pairing=statistics.pairing_of(a, b),
            differences=differences, seed_list=seeds, new_images=None, these_checkpoints=None,
        )  # fmt: skip
        return found if len(seeds) < MIN_SEEDS else self._with_inference(found, resolution)

    def _with_inference(self, found: Difference, resolution: float) -> Difference:
        """Return a difference with its intervals, its verdict and the seeds needed."""
        contrasts = 1 if found.exploratory else self._contrasts
        estimate = statistics.paired_t(found.differences, resolution, self._confidence, contrasts)
        low, high = found.mean - float(estimate.reach), found.mean + float(estimate.reach)
        p, spread = float(estimate.p), float(np.std(found.differences, ddof=1))
        found = found._replace(
            low=low,
            high=high,
            p=p,
            method=statistics.METHOD,
            sd=float(estimate.error) * math.sqrt(found.seeds),
            seeds_needed=seeds_needed(found.target, spread, contrasts, self._confidence, resolution=resolution),
            detectable=detectable(spread, found.seeds, contrasts, self._confidence, resolution=resolution),
        )
        if not found.exploratory:
            found = found._replace(
                p_adjusted=min(1.0, p * contrasts),
                method=f"{found.method}, simultaneous over {contrasts} contrast{'s' if contrasts > 1 else ''}",
                verdict=statistics.verdict_of(low, high, found.margin),
            )
        level = 1 - (1 - self._confidence) / contrasts
        images = self._images(found)
        if images is None:
            return found
        return found._replace(new_images=crossed(*images, level), these_checkpoints=bootstrap(*images, level))

    def _images(self, found: Difference) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Return the outcomes of both arms as seeds × images, or None where some are missing."""
        runs = [(pool, seed) for pool in (found.a, found.b) for seed in found.seed_list]
        read = [each for pool, seed in runs if (each := self._outcomes_of(pool, seed, found.metric)) is not None]
        if len(read) < len(runs):
            return None
        if len({each.keys for each in read}) > 1:
            LOG.warning("%s: not all runs of %s and %s have the same images", found.metric, found.a, found.b)
            return None
        values = np.stack([each.values for each in read])
        return values[: found.seeds], values[found.seeds :]

    def _outcomes_of(self, pool: str, seed: int, metric: str) -> Outcomes | None:
        """Return the outcomes of a run. They are read once, until `forget` is called."""
        if self._outcomes is None:
            return None
        if (pool, seed) not in self._read:
            value = self._runs[pool][seed]["metrics"][metric]
            one = self._outcomes(pool, seed, metric)
            self._read[pool, seed] = usable(one, value, f"{metric} of {pool} seed {seed}")
        return self._read[pool, seed]
