"""The results of a study, gathered from the folders of whatever runs are finished. This needs no torch."""

import json
import logging
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmrep import __version__
from mmrep.config.schema import read_fields
from mmrep.config.tree import CompareConfig, ScreenConfig
from mmrep.files import read_json, read_json_lines, write_errors, write_json
from mmrep.study.comparison import compare_arms
from mmrep.study.images import RunOutcomes
from mmrep.study.kept import read_diagnostics, read_pictures
from mmrep.study.plan import PlannedRun, failed_runs, failure_of, plan_runs, read_tuning, tuning_runs
from mmrep.study.report import write_report
from mmrep.study.results import RESULTS as STUDY_RESULTS
from mmrep.study.results import SCHEMA, metrics_of
from mmrep.study.statistics import Difference
from mmrep.training.output import (
    HISTORY,
    INITIAL,
    METRICS,
    RESULTS,
    STUDY,
    SUMMARY,
    read_config,
    read_results,
)

LOG = logging.getLogger("mmrep")
CURVE_POINTS = 100
HEAD = "image.pool."
AFTER_HEAD = ("image.projection.", "image.auxiliary_projections.")


def read_study(folder: Path) -> CompareConfig | None:
    """Return the study that a folder holds, or None where none of its runs is there.

    Raises:
        ConfigError: study.yaml is of another version, or damaged.
    """
    place = folder / STUDY
    if not place.is_file() or not (folder / "runs").is_dir():
        return None
    content = read_config(place) | {"output_dir": str(folder)}
    kind = ScreenConfig if content.pop("kind", "compare") == "screen" else CompareConfig
    return read_fields(kind, content, f"{place}:")


def write_study(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Write results.json and the report, and return the files."""
    write_json(folder / STUDY_RESULTS, results)
    with write_errors(folder):
        return [folder / STUDY_RESULTS, write_report(folder, results)]


def kind_of(config: CompareConfig) -> str:
    """Return the kind of a study: `compare`, or `screen` with one frozen trunk."""
    return "screen" if isinstance(config, ScreenConfig) else "compare"


def finished_runs(config: CompareConfig) -> list[PlannedRun]:
    """Return the runs of a study that are finished, in the order of the plan."""
    return [run for run in plan_runs(config) if (run.folder / SUMMARY).exists()]


def collect(config: CompareConfig, command: str) -> dict[str, Any]:
    """Return the results of a study as results.json has them, from the runs that are finished.

    Args:
        config: the study.
        command: the command that makes the study.
    """
    runs = finished_runs(config)
    at = {arm.label: (str(arm.pool.label), dict(arm.at)) for arm in config.study.arms()}
    entries = [_entry(run, config, *at[run.pool]) for run in runs]
    evidence = {
        (r.pool, r.seed): (read_json(r.folder / SUMMARY)["batches"], read_json(r.folder / INITIAL)) for r in runs
    }
    arms = config.study.arms()
    patches = read_json(runs[0].folder / SUMMARY).get("patches") if runs else None
    obstacle = unpaired(
        evidence,
        config.model.pool_init == "preserve",
        {arm.label for arm in arms if arm.head_seed},
        {arm.label: json.dumps(dict(arm.at), sort_keys=True) for arm in arms},
    )
    if obstacle:
        LOG.warning("the runs are not paired, and no differences are taken: %s", obstacle)
    failed = failed_runs(config)
    history = read_json_lines(Path(config.output_dir) / HISTORY)
    planned = len(arms) * len(config.study.seeds)
    baseline = config.study.reference
    primary = primary_metric(entries, config.study.primary.metric)
    results = {
        "schema": SCHEMA,
        "name": Path(config.output_dir).resolve().name,
        "kind": kind_of(config),
        "command": command,
        "baseline": baseline,
        "primary": primary,
        "contrasts": [contrast._asdict() for contrast in config.study.contrasts()],
        "planned_seeds": config.study.seeds,
        "interim": len(runs) < planned,
        "history": history,
        "registered": not any({"primary", "baseline", "confidence"} & set(event["changed"]) for event in history),
        "paired": not obstacle,
        "unpaired_because": obstacle or None,
        "runs": entries,
        "failed": failed,
        "missing": planned - len(runs) - len(failed),
        "differences": []
        if obstacle or not entries
        else [each._asdict() for each in _differences(config, entries, primary, runs)],
        "controls": [{"a": a, "b": b, "text": control_text(config, a)} for a, b in config.study.controls()],
        "tuning": tuning(config),
        "unequal": unequal(config, entries),
        "confidence": config.study.confidence,
        "batches": {str(seed): batches for (_, seed), (batches, _) in evidence.items()},
        "patch_tokens": patch_tokens(config) or patches,
        "preserved": config.model.weights if config.model.pool_init == "preserve" else None,
        "mmrep": __version__,
        "curves": {f"{run.pool}-{run.seed}": curve(run.folder) for run in runs},
    }
    if found := read_diagnostics(config, runs):
        results["diagnostics"] = found
    if pictures := read_pictures(Path(config.output_dir)):
        results["pictures"] = pictures
    return results


def _entry(run: PlannedRun, config: CompareConfig, head: str, at: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the results have of one run. Figures without a chance level, such as ranks, are not compared."""
    content = read_results(run.folder / RESULTS) if config.evaluation.sets else {"results": []}
    found = content["results"]
    compared = [(f"{result['dataset']}/{name}", result, name) for result in found for name in result["chance"]]
    return {
        "pool": run.pool,
        "seed": run.seed,
        "head": head,
        "at": dict(at),
        "metrics": {title: result["metrics"][name] for title, result, name in compared},
        "chance": {title: result["chance"][name] for title, result, name in compared},
        "evaluations": content.get("evaluations"),
        "items": {title: result["n"] for title, result, _ in compared},
        "cost": read_json(run.folder / SUMMARY)["cost"],
    }


def curve(folder: Path) -> list[dict[str, Any]]:
    """Return at most CURVE_POINTS lines of a run's metrics.jsonl, evenly spaced, and all its evaluations."""
    lines = read_json_lines(folder / METRICS)
    logged = [line for line in lines if "evaluation" not in line]
    every = math.ceil(len(logged) / CURVE_POINTS) or 1
    kept = logged[::-1][::every][::-1] + [line for line in lines if "evaluation" in line]
    names = ("step", "loss", "lr", "logit_scale", "pairs_per_s", "exponents", "evaluation")
    ranges = ("exponent_min", "exponent_median", "exponent_max")
    return [{name: line[name] for name in (*names, *ranges) if name in line} for line in kept]


def tuning(config: CompareConfig) -> dict[str, Any] | None:
    """Return what was tuned, the choice of every arm, and the arms whose choice lies at an end of the grid."""
    tune = config.study.tune
    if not tune.values:
        return None
    found = read_tuning(config)
    chosen = {pool: each["chosen"] for pool, each in found.items() if each["chosen"]}
    ends = {key: (min(each), max(each)) for key, each in tune.values.items() if _ordered(each)}
    return {
        "fields": list(tune.values),
        "metric": tune.metric or "the main metric of the validation split",
        "seeds": tune.seeds,
        "chosen": chosen,
        "edge": [pool for pool, values in chosen.items() if any(values[key] in end for key, end in ends.items())],
        "runs": [{"pool": pool, **run} for pool, each in found.items() for run in each["runs"]],
    }


def _ordered(values: list[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, int | float) for value in values)


def control_text(config: CompareConfig, label: str) -> str:
    """Return what a control is, for the report."""
    arm = next(arm for arm in config.study.arms() if arm.label == label)
    if arm.head_seed:
        return "the same head from other initial values: their difference is noise"
    return "the same head with groups of channels drawn at random: they must tie if the groups mean nothing"


def unequal(config: CompareConfig, entries: list[dict[str, Any]]) -> list[str]:
    """Return what differs between the arms besides the head, each as a sentence."""
    found = []
    for name, title in (("params", "parameters"), ("gmacs", "multiply-adds an image")):
        by_pool = {entry["pool"]: entry["cost"][name] for entry in entries}
        if by_pool and min(by_pool.values()) > 0:
            least, most = min(by_pool, key=by_pool.__getitem__), max(by_pool, key=by_pool.__getitem__)
            share = f"{100 * (by_pool[most] / by_pool[least] - 1):.1f}%"
            if by_pool[most] > by_pool[least]:
                more = "less than 0.1%" if share == "0.0%" else share
                found.append(f"{most} has {more} more {title} than {least}.")
    tuned = tuning(config)
    for key in tuned["fields"] if tuned else []:
        values = {pool: each[key] for pool, each in tuned["chosen"].items()} if tuned else {}
        if len(set(map(str, values.values()))) > 1:
            found.append(f"{key} was tuned: " + ", ".join(f"{pool} {value}" for pool, value in values.items()) + ".")
    if isinstance(config, ScreenConfig) and config.trunk is None:
        found.append(f"The frozen trunk was trained with {config.study.reference}, which favours that head.")
    found += [
        f"A tuning run failed, so its value was not chosen: {run.name}: {message}."
        for run in tuning_runs(config)
        if (message := failure_of(run))
    ]
    return found + [
        f"The exponents of {arm.label} learn at {arm.pool.args['lr_scale']} times the learning rate."
        for arm in config.study.arms()
        if "lr_scale" in arm.pool.args
    ]


def patch_tokens(config: CompareConfig) -> int | None:
    """Return the number of patch tokens of the trunk, or None where the config does not give it."""
    args = config.model.image.args
    if {"img_size", "patch_size"} <= set(args) and isinstance(args["img_size"], int):
        return int(args["img_size"] // args["patch_size"]) ** 2
    return None


def unpaired(
    evidence: Mapping[tuple[str, int], tuple[str, dict[str, str]]],
    preserve: bool = False,
    shifted: Collection[str] = (),
    points: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return why runs of one seed are not paired, or an empty text.

    Paired runs saw the same batches and started with equal values wherever they share a parameter.

    Args:
        evidence: for each arm and seed, the digest of all batches and the digests of all initial parameters, each
            after the shape.
        preserve: whether the heads were grafted onto a trained one. Projections of new columns then start at zero.
        shifted: arms with a head seed of their own, whose projections start from other values.
        points: the point of the axes that each arm belongs to; runs are compared at the same point.
    """
    seen: dict[tuple[int, str], tuple[str, str]] = {}
    first: dict[tuple[int, str, str, str], tuple[str, str]] = {}
    for (pool, seed), (batches, initial) in evidence.items():
        at = points.get(pool, "")
        reference, batches_then = seen.setdefault((seed, at), (pool, batches))
        if batches != batches_then:
            return f"{pool} and {reference} of seed {seed} saw other batches ({batches}, {batches_then})"
        own = (HEAD, *AFTER_HEAD) if preserve or pool in shifted else (HEAD,)
        for name, value in initial.items():
            if name.startswith(own):
                continue
            shape, digest = value.rsplit(" ", 1)
            reference, digest_then = first.setdefault((seed, at, name, shape), (pool, digest))
            if digest != digest_then:
                return f"{pool} and {reference} of seed {seed} started with other values of {name}"
    return ""


def primary_metric(entries: list[dict[str, Any]], asked: str | None) -> str | None:
    """Return the metric that verdicts are about: the one asked for, else the first set's main metric.

    A metric that no set has means a warning and no verdicts rather than an error, because the runs are done by then.
    """
    names = list(entries[0]["metrics"]) if entries else []
    if entries and asked is not None and asked not in names:
        LOG.warning(
            "study.primary.metric: no set has the metric %r, so there are no verdicts (valid: %s)",
            asked,
            ", ".join(names),
        )
        return None
    return asked or next(iter(metrics_of({"runs": entries}, primary=True)), None)


def _differences(
    config: CompareConfig, entries: list[dict[str, Any]], primary: str | None, runs: list[PlannedRun]
) -> list[Difference]:
    study = config.study
    outcomes = RunOutcomes({(run.pool, run.seed): run.folder for run in runs})
    detect = study.primary.detect / 100
    others = [(arm.label, study.baseline_of(arm)) for arm in study.arms()] + study.controls()
    return compare_arms(entries, study.contrasts(), others, primary, study.confidence, detect, outcomes)
