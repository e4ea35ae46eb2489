"""The runs of a study: tuning runs first, then every arm with every seed. Running them is `mmrep.study.queue`."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from mmrep.config.study import Arm, Varied
from mmrep.config.tree import CompareConfig, TrainConfig, with_option
from mmrep.evaluation.metrics import is_main
from mmrep.files import DamagedFile, read_json, read_json_lines, write_json
from mmrep.training.output import METRICS, SUMMARY

LOG = logging.getLogger("mmrep")
FAILURE, TUNING = "failure.json", "tuning.json"


class PlannedRun(NamedTuple):
    """One training run of a study.

    Attributes:
        pool: label of the arm.
        seed: seed of data order, augmentation and initial values.
        config: config of the run.
        tuned: the values that a tuning run tries; None for the runs that are compared.
    """

    pool: str
    seed: int
    config: TrainConfig
    tuned: Mapping[str, Any] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return Path(self.config.output_dir)

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        values = "".join(f" {key} {value}" for key, value in (self.tuned or {}).items())
        return f"{'tuning ' if self.tuned else ''}{self.pool}{values} seed {self.seed}"


def plan_runs(config: CompareConfig) -> list[PlannedRun]:
    """Return the runs that are compared, seed by seed, so that an interrupted study still has complete seeds.

    Arms whose tuning is not finished have no runs yet.
    """
    chosen = {arm.label: tuned_values(config, arm) for arm in config.study.arms()}
    return [
        PlannedRun(arm.label, seed, _configured(config, arm, seed, Path("runs", f"{arm.label}-{seed}"), values))
        for seed in config.study.seeds
        for arm in config.study.arms()
        if (values := chosen[arm.label]) is not None
    ]


def tuning_runs(config: CompareConfig, arm: Arm | None = None) -> list[PlannedRun]:
    """Return the runs that tune one arm, or all. They see no test set; their score is that of the validation split."""
    tune, found = config.study.tune, []
    for seed in tune.seeds if tune.values else []:
        for values in tune.grid():
            for each in config.study.arms() if arm is None else [arm]:
                name = "".join(f",{key.rpartition('.')[2]}={value}" for key, value in values.items())
                run = _configured(config, each, seed, Path("tuning", f"{each.label}{name}-{seed}"), values)
                run = with_option(run, "evaluation.sets", [], "study.tune")
                found.append(PlannedRun(each.label, seed, run, values))
    return found


def _configured(config: CompareConfig, arm: Arm, seed: int, place: Path, values: Mapping[str, Any]) -> TrainConfig:
    """Return the config of one run: the recipe, the arm's head and axes, tuned values, seeds, and its folder."""
    run: TrainConfig = config.recipe()
    varied: list[Varied] = config.study.vary
    first = config.study.seeds[0]
    settings: dict[str, Any] = {
        **arm.at,
        **values,
        "model.pool": {"name": arm.pool.name, "args": arm.pool.args},
        "training.steps": config.steps(),
        "seed": seed,
        "output_dir": str(Path(config.output_dir) / place),
        "resume": "auto",
    }
    settings |= {f"seeds.{part}": first for part in ("data", "trunk", "head") if part not in varied}
    if arm.head_seed:
        settings["seeds.head"] = (seed if "head" in varied else first) + arm.head_seed
    for name, value in settings.items():
        run = with_option(run, name, value, "study")
    return run


def tuned_values(config: CompareConfig, arm: Arm) -> dict[str, Any] | None:
    """Return the values that tuning has chosen for an arm: none to set without tuning, None before it is finished."""
    if not config.study.tune.values:
        return {}
    found = read_tuning(config).get(arm.label)
    return found["chosen"] if found else None


def failed_runs(config: CompareConfig) -> list[dict[str, Any]]:
    """Return arm, seed and message of every compared run that failed, and of all runs of arms that tuning left out."""
    found = [
        {"pool": run.pool, "seed": run.seed, "message": message}
        for run in plan_runs(config)
        if (message := failure_of(run))
    ]
    for arm in config.study.arms():
        choice = read_tuning(config).get(arm.label)
        if choice and choice["chosen"] is None:
            reason = next(filter(None, map(failure_of, tuning_runs(config, arm))), "")
            message = f"left out: no value of its grid could be trained with every seed: {reason}"
            found += [{"pool": arm.label, "seed": seed, "message": message} for seed in config.study.seeds]
    return found


def failure_of(run: PlannedRun) -> str:
    """Return why a run failed, or an empty text if it did not."""
    try:
        return str(read_json(run.folder / FAILURE)["message"])
    except FileNotFoundError:
        return ""


def read_tuning(config: CompareConfig) -> dict[str, Any]:
    """Return what tuning has chosen for each arm, with the score of every run, as far as it is finished."""
    try:
        return read_json(Path(config.output_dir) / TUNING)
    except FileNotFoundError:
        return {}


def conclude_tuning(config: CompareConfig) -> None:
    """Write the choice for every arm whose tuning runs are finished or failed. A choice that is made stays.

    The caller holds the lock of the study. The value with the best mean over the tuning seeds is chosen, among those
    that no seed failed with.
    """
    found = read_tuning(config)
    for arm in config.study.arms():
        if arm.label in found:
            continue
        runs = tuning_runs(config, arm)
        scores = [_score(run, config.study.tune.metric) for run in runs]
        if any(score is None for score in scores):
            continue
        entries = [
            {"at": dict(run.tuned or {}), "seed": run.seed, "value": score if math.isfinite(score or 0.0) else None}
            for run, score in zip(runs, scores, strict=True)
        ]
        means = []
        for values in config.study.tune.grid():
            own = [score or 0.0 for run, score in zip(runs, scores, strict=True) if run.tuned == values]
            means.append((fmean(own) if all(map(math.isfinite, own)) else -math.inf, values))
        best, chosen = max(means, key=lambda each: each[0])
        found[arm.label] = {"chosen": chosen if best > -math.inf else None, "runs": entries}
        write_json(Path(config.output_dir) / TUNING, found)
        if best > -math.inf:
            LOG.info("tuning: %s takes %s", arm.label, ", ".join(f"{key} {value}" for key, value in chosen.items()))
        else:
            LOG.warning("%s is left out: no value of its grid could be trained with every seed", arm.label)


def _score(run: PlannedRun, metric: str | None) -> float | None:
    """Return a tuning run's score on the validation split, -inf where it failed, or None while it is not finished."""
    if (run.folder / FAILURE).exists():
        return -math.inf
    if not (run.folder / SUMMARY).exists():
        return None
    evaluations = [line["evaluation"] for line in read_json_lines(run.folder / METRICS) if "evaluation" in line]
    last: dict[str, float] = evaluations[-1] if evaluations else {}
    name = metric or next((name for name in last if is_main(name)), "")
    if name not in last:
        raise DamagedFile(
            f"{run.folder / METRICS}: no metric {name or 'of the validation split'} to tune for "
            f"(found: {', '.join(last) or 'none'})"
        )
    return float(last[name])
