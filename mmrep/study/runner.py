"""Running a study: training what is missing, checking that runs are paired, collecting results."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from mmrep import __version__, distributed
from mmrep.config.checks import ConfigError
from mmrep.config.tree import CompareConfig
from mmrep.files import locked, read_json, write_errors, write_json, write_text
from mmrep.study.comparison import compare_arms
from mmrep.study.diagnosis import diagnose
from mmrep.study.plan import STUDY, PlannedRun, check_same_study, plan_runs
from mmrep.study.report import RESULTS, SCHEMA, metrics_of, write_report
from mmrep.study.statistics import CANNOT_TELL, Contrast, Difference
from mmrep.training.output import INITIAL, RUN_CONFIG, SUMMARY, check_kind, read_config, read_results
from mmrep.training.resume import plain
from mmrep.training.signals import Stopped, StopSignal
from mmrep.training.trainer import train

LOG = logging.getLogger("mmrep")


def compare(config: CompareConfig, resume_command: str) -> dict[str, Any]:
    """Train every head with every seed, evaluate each run once, and compare. Another call continues an interrupted one.

    Args:
        config: the study, and the recipe that its runs share.
        resume_command: command to print when a signal ends the study.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: the folder holds another study.
        Stopped: a signal ended the study.
    """
    distributed.start()
    folder = Path(config.output_dir)
    runs = plan_runs(config)
    first = distributed.rank() == 0
    with locked(folder) if first else nullcontext():
        if first:
            check_kind("output_dir", folder, "a study")
            recipe = plain(config.to_dict())
            check_same_study(config, recipe)
            write_text(folder / STUDY, yaml.safe_dump(recipe, sort_keys=False))
            for run in runs:
                _check_pool(run)
        distributed.barrier()
        for number, run in enumerate(runs):
            train(run.config, resume_command, label=f"[{number + 1}/{len(runs)}] {run.pool} seed {run.seed}")
        with StopSignal() as stop:
            try:
                return _conclude(config, runs)
            except KeyboardInterrupt as interrupt:
                name = stop.name or "a signal"
                raise Stopped(
                    f"stopped by {name} after the last run; continue with:\n  {resume_command}"
                ) from interrupt


def _conclude(config: CompareConfig, runs: list[PlannedRun]) -> dict[str, Any]:
    """Collect results and diagnose the models. This is a collective, since models are evaluated on all processes."""
    folder, first = Path(config.output_dir), distributed.rank() == 0
    results = collect(config, runs)
    if first:
        write_study(folder, results)
    results["diagnostics"] = diagnose(config, runs)
    if first:
        write_study(folder, results)
    distributed.barrier()
    return results


def write_study(folder: Path, results: dict[str, Any]) -> None:
    """Write results.json and report.md."""
    write_json(folder / RESULTS, results)
    with write_errors(folder):
        write_report(folder, results)


def _check_pool(run: PlannedRun) -> None:
    """Raise ConfigError where the folder holds a run of another head under this label."""
    place = Path(run.config.output_dir) / RUN_CONFIG
    before = read_config(place).get("model", {}).get("pool") if place.is_file() else None
    if before not in (None, run.config.model.pool):
        raise ConfigError(f"{place} has pool {before}, not {run.config.model.pool}: give one of them another label")


def collect(config: CompareConfig, runs: list[PlannedRun]) -> dict[str, Any]:
    """Return the results of a study as results.json has them."""
    entries, evidence = [], {}
    for run in runs:
        place = Path(run.config.output_dir)
        summary = read_json(place / SUMMARY)
        found = read_results(place / RESULTS)["results"] if config.evaluation.sets else []
        entries.append(
            {
                "pool": run.pool,
                "seed": run.seed,
                # Figures without a chance level, such as ranks, are not compared.
                "metrics": {f"{r['dataset']}/{name}": r["metrics"][name] for r in found for name in r["chance"]},
                "chance": {f"{r['dataset']}/{name}": value for r in found for name, value in r["chance"].items()},
                "items": {f"{r['dataset']}/{name}": r["n"] for r in found for name in r["chance"]},
                "cost": summary["cost"],
            }
        )
        initial = read_json(place / INITIAL)
        evidence[run.pool, run.seed] = (summary["batches"], initial)
    obstacle = unpaired(evidence, config.model.pool_init == "preserve")
    if obstacle:
        LOG.warning("the runs are not paired, and no differences are taken: %s", obstacle)
    baseline, primary = config.study.reference, primary_metric(entries, config.study.primary)
    return {
        "schema": SCHEMA,
        "baseline": baseline,
        "paired": not obstacle,
        "runs": entries,
        "primary": primary,
        "differences": [d._asdict() for d in compare_to_baseline(entries, baseline, primary, config.study.confidence)]
        if not obstacle
        else [],
        "unpaired_because": obstacle or None,
        "confidence": config.study.confidence,
        "batches": {str(seed): batches for (_, seed), (batches, _) in evidence.items()},
        "patch_tokens": _patch_tokens(runs[0]),
        "preserved": config.model.weights if config.model.pool_init == "preserve" else None,
        "mmrep": __version__,
    }


def _patch_tokens(run: PlannedRun) -> int | None:
    """Return the number of patch tokens of the trunk, or None where the config does not give it."""
    args = run.config.model.image.args
    if {"img_size", "patch_size"} <= set(args) and isinstance(args["img_size"], int):
        return int(args["img_size"] // args["patch_size"]) ** 2
    return None


def unpaired(evidence: dict[tuple[str, int], tuple[str, dict[str, str]]], preserve: bool = False) -> str:
    """Return why runs of one seed are not paired, or an empty text.

    Paired runs saw the same batches and started with equal values wherever they share a parameter.

    Args:
        evidence: for each head and seed, the digest of all batches and the digests of all initial parameters, each
            after the shape.
        preserve: whether the heads were grafted onto a trained one. Projections of new columns then start at zero.
    """
    own = ("image.pool.", "image.projection.", "image.auxiliary_projections.") if preserve else ("image.pool.",)
    seen: dict[int, tuple[str, str]] = {}
    first: dict[tuple[int, str, str], tuple[str, str]] = {}
    for (pool, seed), (batches, initial) in evidence.items():
        reference, batches_then = seen.setdefault(seed, (pool, batches))
        if batches != batches_then:
            return f"{pool} and {reference} of seed {seed} saw other batches ({batches}, {batches_then})"
        for name, value in initial.items():
            if name.startswith(own):
                continue
            shape, digest = value.rsplit(" ", 1)
            reference, digest_then = first.setdefault((seed, name, shape), (pool, digest))
            if digest != digest_then:
                return f"{pool} and {reference} of seed {seed} started with other values of {name}"
    return ""


def primary_metric(entries: list[dict[str, Any]], asked: str | None) -> str | None:
    """Return the metric that verdicts are about: the one asked for, else the first set's main metric.

    A metric that no set has means a warning and no verdicts rather than an error, because the runs are done by then.
    """
    names = list(entries[0]["metrics"])
    if asked is not None and asked not in names:
        LOG.warning(
            "study.primary: no set has the metric %r, so there are no verdicts (valid: %s)", asked, ", ".join(names)
        )
        return None
    return asked or next(iter(metrics_of({"runs": entries}, primary=True)), None)


def compare_to_baseline(
    entries: list[dict[str, Any]], baseline: str, primary: str | None, confidence: float
) -> list[Difference]:
    """Return the differences of every other head to the baseline in every metric, over the seeds that both have."""
    arms = dict.fromkeys(entry["pool"] for entry in entries)
    contrasts = [Contrast(arm, baseline) for arm in arms if arm != baseline]
    found = compare_arms(entries, contrasts, baseline, primary, confidence, detect=0.01)
    # Results of schema 2 spell this verdict differently.
    return [d._replace(verdict="can't tell") if d.verdict == CANNOT_TELL else d for d in found]
