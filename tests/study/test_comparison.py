"""Which differences of a study are pre-registered, what each of them holds, and what is left out."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrep.config.study import Contrast
from mmrep.study.comparison import compare_arms
from mmrep.study.images import Outcomes, bootstrap, crossed
from mmrep.study.planning import detectable, seeds_needed
from mmrep.study.statistics import NO_VERDICT, Difference, holm, paired_t, verdict_of

PRIMARY = "set/acc1"
Values = dict[str, list[float]]


def entries(values: Values, metrics: tuple[str, ...] = (PRIMARY,), items: int = 10_000) -> list[dict[str, Any]]:
    """Runs of some arms, seed by seed, with the same value in every metric."""
    return [
        {"pool": pool, "seed": seed, "metrics": dict.fromkeys(metrics, value), "items": dict.fromkeys(metrics, items)}
        for pool, each in values.items()
        for seed, value in enumerate(each)
    ]


def arms(count: int, seeds: int, spread: float = 0.01, seed: int = 0) -> Values:
    random = np.random.default_rng(seed)
    shifts = random.normal(scale=0.015, size=(count, 1))
    rows = (0.5 + shifts + random.normal(scale=spread, size=(count, seeds))).tolist()
    return dict(zip(["avg", "cls", "ggem", "max"], rows, strict=False))


def compare(values: Values, contrasts: list[Contrast], **changes: Any) -> list[Difference]:
    arguments = {
        "others": [(label, "avg") for label in values],
        "primary": PRIMARY,
        "confidence": 0.95,
        "detect": 0.01,
        **changes,
    }
    return compare_arms(entries(values), contrasts, **arguments)


def to_avg(runs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every arm and avg."""
    return [(run["pool"], "avg") for run in runs]


def test_a_difference_holds_all_that_the_report_shows() -> None:
    values = arms(3, 5)
    found = compare(values, [Contrast("ggem", "avg", 0.02), Contrast("cls", "ggem")])[0]
    differences = np.subtract(values["ggem"], values["avg"])
    expected = paired_t(differences, 1e-4, 0.95, 2)
    assert found[:3] == (PRIMARY, "ggem", "avg")
    assert found.mean == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx(
        (expected.mean - expected.reach, expected.mean + expected.reach), rel=1e-12
    )
    assert (found.p, found.p_adjusted) == pytest.approx((expected.p, 2 * expected.p))
    assert found.method == "paired t over seeds, simultaneous over 2 contrasts"
    assert found.sd == pytest.approx(differences.std(ddof=1))
    assert (found.margin, found.target) == (0.02, 0.02)
    assert found.seeds_needed == seeds_needed(0.02, differences.std(ddof=1), 2, 0.95)
    assert found.detectable == pytest.approx(detectable(differences.std(ddof=1), 5, 2, 0.95))
    assert found.correlation == pytest.approx(np.corrcoef(values["ggem"], values["avg"])[0, 1])
    assert found.differences == pytest.approx(differences.tolist())
    assert (found.seed_list, found.seeds) == ([0, 1, 2, 3, 4], 5)
    assert (found.new_images, found.these_checkpoints) == (None, None)
    assert json.loads(json.dumps(found._asdict())) == found._asdict()


def test_only_contrasts_of_the_primary_metric_are_judged() -> None:
    runs = entries(arms(4, 5), (PRIMARY, "set/acc5"))
    found = compare_arms(
        runs, [Contrast("ggem", "cls", 0.01), Contrast("avg", "max")], to_avg(runs), PRIMARY, 0.95, 0.02
    )
    pairs = [("ggem", "cls"), ("avg", "max"), ("cls", "avg"), ("ggem", "avg")]
    assert [(d.metric, d.a, d.b) for d in found] == [(m, *pair) for m in (PRIMARY, "set/acc5") for pair in pairs]
    for each in found:
        judged = each.metric == PRIMARY and (each.a, each.b) in pairs[:2]
        assert each.exploratory != judged
        assert (each.verdict is not None) == (each.p_adjusted is not None) == (each.p_holm is not None) == judged
        expected = paired_t(each.differences, 1e-4, 0.95, 2 if judged else 1)
        assert each.high == pytest.approx(float(expected.mean + expected.reach))
        assert each.margin == (0.01 if judged and each.a == "ggem" else None)
        assert each.target == (0.02 if each.margin is None else each.margin)
    none = compare_arms(runs, [Contrast("ggem", "cls")], to_avg(runs), None, 0.95, 0.02)
    assert all(each.exploratory and each.verdict is None and each.method == "paired t over seeds" for each in none)


def test_verdict_interval_and_p_agree_in_every_study() -> None:
    """Holm's p-value is the smallest of the adjusted ones, and may be below the level where the verdict is open."""
    seen: dict[str, int] = {}
    for trial in range(300):
        values = arms(4, 4, seed=trial)
        contrasts = [Contrast(each, "avg", 0.03) for each in ("cls", "ggem", "max")]
        found = compare(values, contrasts)
        assert [d.p_holm for d in found] == holm([d.p or 0 for d in found], 3)
        for each in found:
            assert each.low is not None and each.high is not None
            assert each.p is not None and each.p_adjusted is not None and each.p_holm is not None
            outside = each.low > 0 or each.high < 0
            assert outside == (each.p_adjusted < 0.05) == (each.verdict in ("better", "worse"))
            assert each.verdict == verdict_of(each.low, each.high, 0.03)
            assert each.p <= each.p_holm <= each.p_adjusted
            seen[str(each.verdict)] = seen.get(str(each.verdict), 0) + 1
    assert seen.keys() == {"better", "worse", "equivalent", "cannot tell"}


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_verdict(seeds: int) -> None:
    found = compare(arms(2, seeds), [Contrast("cls", "avg", 0.02)])[0]
    empty = ("low", "high", "p", "p_adjusted", "p_holm", "verdict", "seeds_needed", "detectable", "sd", "correlation")
    assert all(getattr(found, name) is None for name in (*empty, "pairing", "new_images", "these_checkpoints"))
    assert (found.method, found.seeds, found.exploratory) == (NO_VERDICT, seeds, False)
    assert len(found.differences) == seeds


def test_seeds_that_agree_are_no_proof() -> None:
    """One image in 500, in every seed; the floor is also that of the standard deviation."""
    runs = entries({"avg": [0.5] * 5, "cls": [0.502] * 5}, items=500)
    found = compare_arms(runs, [Contrast("cls", "avg")], to_avg(runs), PRIMARY, 0.95, 0.01)[0]
    assert found.verdict == "cannot tell"
    assert found.sd == pytest.approx(1 / 500 / 6**0.5 * 5**0.5)
    assert found.detectable == pytest.approx(2.7764 / 500 / 6**0.5, rel=1e-4)
    same = compare_arms(runs, [Contrast("avg", "avg")], to_avg(runs), PRIMARY, 0.95, 0.01)[0]
    assert (same.mean, same.p, same.verdict) == (0.0, 1.0, "cannot tell")


def test_arms_are_compared_over_the_seeds_that_both_have() -> None:
    values = arms(3, 6)
    runs = [
        run
        for run in entries(values)
        if (run["pool"], run["seed"]) not in {("avg", 0), ("cls", 5)} and not (run["pool"] == "ggem" and run["seed"])
    ]
    contrasts = [Contrast("cls", "avg"), Contrast("ggem", "cls"), Contrast("max", "avg")]
    # There is no run of `max` yet, and of `ggem` none with a seed of `avg`.
    first, second = compare_arms(runs, contrasts, to_avg(runs), PRIMARY, 0.95, 0.01)
    assert first.seed_list == [1, 2, 3, 4]
    assert first.differences == pytest.approx(np.subtract(values["cls"], values["avg"])[1:5].tolist())
    assert (second.b, second.seed_list, second.verdict) == ("cls", [0], None)
    # The family is that of the plan, however much of it has runs.
    assert first.p is not None and first.p_adjusted == pytest.approx(min(1, 3 * first.p))
    assert first.p_holm == first.p_adjusted
    alone = paired_t(first.differences, 1e-4, 0.95, 3)
    assert first.high == pytest.approx(float(alone.mean + alone.reach))


def test_values_that_are_not_finite_are_named(caplog: pytest.LogCaptureFixture) -> None:
    values = {**arms(3, 4), "ggem": [0.5, float("nan"), 0.5, 0.5]}
    caplog.set_level(logging.WARNING)
    found = compare(values, [Contrast("ggem", "avg"), Contrast("cls", "avg")])
    assert [d.a for d in found] == ["cls"]
    assert [r.getMessage() for r in caplog.records] == [f"ggem − avg in {PRIMARY} is left out: ggem of seed 1 has nan"]


@dataclasses.dataclass
class Outcome:
    """Outcomes of images that each run has, and how often they were read."""

    values: dict[tuple[str, int], np.ndarray]
    other: tuple[str, int] | None = None
    reads: int = 0

    def __call__(self, pool: str, seed: int, metric: str) -> Outcomes | None:
        self.reads += 1
        if metric != PRIMARY:
            return None
        return Outcomes("other" if (pool, seed) == self.other else "keys", self.values[pool, seed])


def test_images_are_added_where_all_runs_have_them(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(0)
    shares = {"avg": 0.5, "cls": 0.55, "ggem": 0.6}
    outcomes = {
        (pool, s): (random.random(200) < share).astype(float) for pool, share in shares.items() for s in (0, 1, 2)
    }
    runs = entries({pool: [outcomes[pool, s].mean() for s in range(3)] for pool in shares}, (PRIMARY, "set/map"), 200)
    contrasts = [Contrast("cls", "avg"), Contrast("ggem", "avg"), Contrast("ggem", "cls")]
    read = Outcome(outcomes)
    found = compare_arms(runs, contrasts, to_avg(runs), PRIMARY, 0.95, 0.01, read)
    assert read.reads == 9 * 2  # once in each metric
    level = 1 - 0.05 / 3
    for each in found:
        a, b = (np.stack([outcomes[pool, s] for s in range(3)]) for pool in (each.a, each.b))
        judged = each.metric == PRIMARY
        assert each.new_images == (crossed(a, b, level) if judged else None)
        assert each.these_checkpoints == (bootstrap(a, b, level) if judged else None)
        if each.new_images:
            assert each.low is not None and each.new_images["low"] <= each.low + 1e-12
    json.dumps([each._asdict() for each in found])
    assert not caplog.records
    mixed = compare_arms(runs, contrasts, to_avg(runs), PRIMARY, 0.95, 0.01, Outcome(outcomes, other=("ggem", 1)))
    assert [each.new_images is None for each in mixed[:3]] == [False, True, True]
    assert f"{PRIMARY}: not all runs of ggem and avg have the same images" in caplog.text
    outcomes["cls", 2] = 1 - outcomes["cls", 2]
    broken = compare_arms(runs, contrasts, to_avg(runs), PRIMARY, 0.95, 0.01, Outcome(outcomes))
    assert [each.new_images is None for each in broken[:3]] == [True, False, True]
    assert f"{PRIMARY} of cls seed 2: the outcomes' mean is" in caplog.text


def test_statistics_need_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, mmrep.study.comparison; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
