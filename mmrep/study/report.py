"""The report of a study: tables on the terminal, and report.md."""

import json
import statistics
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from mmrep.config.checks import ConfigError, quoted, require
from mmrep.config.schema import read_value
from mmrep.evaluation.metrics import is_main
from mmrep.markup import align, markdown_table
from mmrep.study.inside import left_out, sections
from mmrep.study.statistics import MIN_SEEDS
from mmrep.training.output import METRICS

RESULTS = "results.json"
SCHEMA = 3
"""Version of the format of results.json. Version 1 had verdicts on every metric."""

FEW_PATCHES = 64
EXPLORATORY = "Exploratory: intervals of single differences, unadjusted, no verdicts."

_COSTS = {
    "params": ("parameters", lambda v: f"{v / 1e6:.2f} M"),
    "gmacs": ("GMACs/image", lambda v: f"{v:.3g}"),
    "pairs_per_s": ("train pairs/s", lambda v: f"{v:.0f}"),
    "images_per_s": ("embed images/s", lambda v: f"{v:.0f}"),
    "peak_mb": ("peak MB", lambda v: f"{v:.0f}"),
}


class _Run(TypedDict):
    pool: str
    seed: int
    metrics: dict[str, float]
    chance: dict[str, float]
    items: dict[str, int]
    cost: dict[str, float]


class _Difference(TypedDict):
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


class _Results(TypedDict):
    """The content of a study's results.json."""

    schema: int
    baseline: str
    primary: str | None
    paired: bool
    runs: list[_Run]
    differences: list[_Difference]
    unpaired_because: str | None
    confidence: float
    batches: dict[str, str]
    patch_tokens: int | None
    preserved: str | None
    mmrep: str
    diagnostics: NotRequired[dict[str, Any]]


def pools_of(results: dict[str, Any]) -> list[str]:
    """Return the labels of the heads, in the order of the study."""
    return list(dict.fromkeys(run["pool"] for run in results["runs"]))


def metrics_of(results: dict[str, Any], primary: bool) -> list[str]:
    """Return the names of all metrics or, if `primary`, of each set's main metrics, where it has any."""
    names = list(dict.fromkeys(name for run in results["runs"] for name in run["metrics"]))
    main = [name for name in names if is_main(name)]
    served = {name.rpartition("/")[0] for name in main}
    return [name for name in names if not primary or name in main or name.rpartition("/")[0] not in served]


def metric_rows(results: dict[str, Any], metrics: list[str]) -> list[list[str]]:
    """Return a row for each of the metrics and each head: mean over seeds, chance, difference to the baseline.

    Only the study's primary metric has a verdict and an adjusted p-value.
    """
    judged = results["primary"] in metrics
    rows = [["metric", "pool", "%", "chance %", f"− {results['baseline']}", *_interval_head(results)]]
    rows[0] += [*(["p adj."] if _has_intervals(results) else []), "verdict"] if judged else []
    by_pair = {(d["metric"], d["a"]): d for d in results["differences"]}
    for metric in metrics:
        for pool in pools_of(results):
            values = [run["metrics"][metric] for run in results["runs"] if run["pool"] == pool]
            chance = results["runs"][0]["chance"][metric]
            difference = by_pair.get((metric, pool))
            rows.append(
                [
                    metric,
                    pool,
                    f"{100 * statistics.fmean(values):.2f}",
                    f"{100 * chance:.2f}",
                    f"{100 * difference['mean']:+.2f}" if difference else "",
                    *_interval(difference, results),
                    *(_judged(difference, results) if judged else []),
                ]
            )
    return rows


def _has_intervals(results: dict[str, Any]) -> bool:
    return any(d["low"] is not None for d in results["differences"])


def _interval_head(results: dict[str, Any]) -> list[str]:
    return [f"{100 * results['confidence']:g}% interval"] if _has_intervals(results) else []


def _interval(difference: dict[str, Any] | None, results: dict[str, Any]) -> list[str]:
    if not _has_intervals(results):
        return []
    if difference is None or difference["low"] is None:
        return [""]
    return [f"{100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}"]


def _judged(difference: dict[str, Any] | None, results: dict[str, Any]) -> list[str]:
    if difference is None:
        return ["", ""] if _has_intervals(results) else [""]
    verdict = difference["verdict"] or "–"
    if not _has_intervals(results):
        return [verdict]
    adjusted = difference["p_adjusted"]
    return ["" if adjusted is None else f"{adjusted:.3f}", verdict]


def cost_rows(results: dict[str, Any]) -> list[list[str]]:
    """Return a row for each head: parameters, multiply-adds, speed, memory, as means over seeds."""
    rows = [["pool", *(title for title, _ in _COSTS.values())]]
    for pool in pools_of(results):
        costs = [run["cost"] for run in results["runs"] if run["pool"] == pool]
        rows.append([pool, *(show(statistics.fmean(c[name] for c in costs)) for name, (_, show) in _COSTS.items())])
    return rows


def remarks(results: dict[str, Any]) -> list[str]:
    """Return the remarks that a reader needs to judge the tables."""
    seeds = sorted({run["seed"] for run in results["runs"]})
    lines = [f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} a head; differences are percentage points."]
    if len(seeds) < MIN_SEEDS:
        lines.append(
            f"Fewer than {MIN_SEEDS} seeds: the differences stand without a verdict. Another seed may turn their "
            "signs; give study.seeds at least 3, better 5."
        )
    elif results["primary"]:
        heads = len(pools_of(results)) - 1
        together = f" hold at once for all {heads} heads compared" if heads > 1 else " are of one comparison"
        lines.append(
            f"Verdicts are about {results['primary']} (study.primary), whose intervals{together}. No interval is "
            "narrower than the resolution of its metric allows (one test image)."
        )
    if results["paired"]:
        lines.append(
            "Paired: the heads of one seed saw the same batches and started equal wherever they share a parameter."
        )
    else:
        lines.append(f"Not paired, so no differences: {results['unpaired_because']}.")
    if results.get("preserved"):
        lines.append(
            f"All heads started equal to the model in {results['preserved']} (model.pool_init: preserve). Those that "
            "can't equal its head by themselves keep it as a part, with a gate or side by side."
        )
    patches = results.get("patch_tokens")
    if patches is not None and patches < FEW_PATCHES:
        lines.append(
            f"A demonstration: {patches} patch tokens an image. What pools best over so few says little about real "
            f"models; use at least {FEW_PATCHES}."
        )
    return lines


def terminal(results: dict[str, Any]) -> str:
    """Return the study as text for a terminal."""
    parts = [align(cost_rows(results))]
    parts += [f"\n{section.title}\n{align(section.rows)}" for section in sections(results) if section.short]
    parts += ["", *(f"• {line}" for line in remarks(results))]
    primary, main = results["primary"], metrics_of(results, primary=True)
    tables = [("Primary metric\n", [primary])] if primary else []
    tables.append((f"{EXPLORATORY}\n", [metric for metric in main if metric != primary]))
    shown = [title + align(metric_rows(results, metrics)) + "\n" for title, metrics in tables if metrics]
    parts[:0] = shown
    return "\n".join(parts)


def markdown(results: dict[str, Any], title: str) -> str:
    """Return the study as Markdown."""
    parts = [f"# {title}", "\n".join(f"- {line}" for line in remarks(results))]
    primary = results["primary"]
    if primary:
        parts += [f"## Primary metric: {primary}", markdown_table(metric_rows(results, [primary]))]
    others = [metric for metric in metrics_of(results, primary=False) if metric != primary]
    if others:
        parts += ["## Other metrics", EXPLORATORY, markdown_table(metric_rows(results, others))]
    parts += ["## Cost", markdown_table(cost_rows(results))]
    parts += [
        "Speeds were measured one head after the other on one machine, training as the median and embedding as the "
        "best of several; on a shared machine differences of a few percent mean nothing."
    ]
    for section in sections(results):
        parts += [f"## {section.title}", section.remark, markdown_table(section.rows)]
    if (results.get("diagnostics") or {}).get("maps"):
        parts += [
            "## Patch weights",
            "What each patch token adds to the embedding of the first seed's models, along the embedding: red adds, "
            "blue takes away, as the colour bar of each head shows. Exact for linear heads and for power "
            "means of positive tokens, else to first order; a head that subtracts a minimum gives that one's part to "
            "the patch that holds it.",
            f"![Patch weights of every head]({results['diagnostics']['maps']})",
        ]
    parts += [f"Not measured: {reason}." for reason in left_out(results)]
    digests = "\n".join(f"| {seed} | `{digest}` |" for seed, digest in results["batches"].items())
    parts += ["## Evidence of pairing", f"| seed | digest of all batches |\n|---|---|\n{digests}"]
    return "\n\n".join(parts) + "\n"


def write_report(folder: Path, results: dict[str, Any]) -> Path:
    """Write report.md into the folder of a study."""
    place = folder / "report.md"
    place.write_text(markdown(results, f"Study {folder.resolve().name}"), encoding="utf-8")
    return place


def read_results(folder: Path) -> dict[str, Any]:
    """Return the content of a study's results.json.

    Raises:
        ConfigError: the file is missing or has another format, or a field is missing or has another type.
    """
    place = folder / RESULTS
    require(not (folder / METRICS).exists(), f"{folder}: a run, not a study; its results are in {place}")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; a study is finished when it is there") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error})") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    require(
        schema == SCHEMA,
        f"{place}: not the results of a study in format {SCHEMA} (found {quoted(schema)}); `mmrep compare` writes them "
        "again without training what is finished",
    )
    results = read_value(_Results, content, f"{place}:")
    _check_whole(results, place)
    return results


def _check_whole(results: dict[str, Any], place: Path) -> None:
    """Raise ConfigError unless all runs have the same metrics and the report can be made."""
    runs = results["runs"]
    require(bool(runs), f"{place}: runs: expected at least one")
    metrics = [None, *runs[0]["metrics"]]
    require(results["primary"] in metrics, f"{place}: primary: {quoted(results['primary'])} is no metric of the runs")
    for i, run in enumerate(runs):
        for name in ("metrics", "chance", "items"):
            require(
                run[name].keys() == runs[0]["metrics"].keys(), f"{place}: runs[{i}].{name}: other metrics than runs[0]"
            )
        require(_COSTS.keys() <= run["cost"].keys(), f"{place}: runs[{i}].cost: expected {', '.join(_COSTS)}")
    try:
        sections(results)
        left_out(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"{place}: diagnostics: {type(error).__name__}: {quoted(str(error))}") from error
    try:
        markdown(results, "")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(f"{place}: its parts do not fit: {type(error).__name__}: {quoted(str(error))}") from error
