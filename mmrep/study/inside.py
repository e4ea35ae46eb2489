"""The diagnostics of a study as tables of means over seeds."""

import statistics
from typing import Any, NamedTuple

MISSING = "–"
_DEPTHS = 4
_STEPS = 5

Runs = list[dict[str, Any]]


class Section(NamedTuple):
    """A table with a title and an explanation.

    Attributes:
        title: heading.
        remark: paragraph that explains the table.
        rows: cells; the first row has the column titles.
        short: whether the terminal shows the table too.
    """

    title: str
    remark: str
    rows: list[list[str]]
    short: bool


def sections(results: dict[str, Any]) -> list[Section]:
    """Return all tables of the diagnostics of a study, or none where it has no diagnostics."""
    found = results.get("diagnostics") or {}
    if not found:
        return []
    runs: dict[str, Runs] = {}
    for run in results["runs"]:
        runs.setdefault(run["pool"], []).append(found["runs"][f"{run['pool']}-{run['seed']}"])
    made = (_overview(runs, found), _depth(runs), _exponents(runs), _removal(runs, found), _resolution(runs, found))
    return [section for section in made if len(section.rows) > 1]


def left_out(results: dict[str, Any]) -> list[str]:
    """Return the reasons why measurements are missing, each once."""
    runs = (results.get("diagnostics") or {}).get("runs", {}).values()
    return list(dict.fromkeys(reason for run in runs for reason in run["left_out"].values()))


def _mean(runs: Runs, *path: str | int) -> float | None:
    """Return the mean over runs of the value at a path, or None where a run lacks it."""
    values: list[Any] = list(runs)
    for key in path:
        values = [None if value is None else value[key] for value in values]
    return None if None in values else statistics.fmean(values)


def _first(runs: dict[str, Runs], name: str) -> Any:
    """Return a part of the diagnostics of the first run that has it, or an empty one."""
    return next((run[name] for each in runs.values() for run in each if run[name]), {})


def _show(value: float | None, form: str = "{:.2f}") -> str:
    return MISSING if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f}"


def _overview(runs: dict[str, Runs], found: dict[str, Any]) -> Section:
    images, floor = _first(runs, "images"), _show((_first(runs, "dependence") or {}).get("floor"), "{:.3f}")
    rows = [["pool", "patches that count %", "MLP units off %", "dead %", "r between", "r within", "HSIC"]]
    for pool, each in runs.items():
        rows.append(
            [
                pool,
                _percent(_mean(each, "patch_weights", "effective_share")),
                _percent(_mean(each, "dead_units", "overall_off_share")),
                _percent(_mean(each, "dead_units", "overall_dead_share")),
                _show(_mean(each, "dependence", "between"), "{:.3f}"),
                _show(_mean(each, "dependence", "within"), "{:.3f}"),
                _show(_mean(each, "dependence", "hsic_rbf"), "{:.3f}"),
            ]
        )
    remark = (
        f"On {images} images of {found['dataset']}. Patches that count: (Σ|w|)² / (N Σw²) of the patch weights w, 100% "
        "if all weigh the same. Off: pre-activations of the trunk's MLPs that are ≤ 0; dead: units ≤ 0 on every token. "
        "r: mean absolute correlation of channels of different groups, and within a group, where the groups are the "
        f"channels of one attention head of the trunk each, for all pools alike ({floor} expected of independent "
        "channels); HSIC: between groups (normalised, RBF kernel), 0 if independent."
    )
    return Section("Inside the models", remark, rows, short=True)


def _depth(runs: dict[str, Runs]) -> Section:
    points: list[str] = _first(runs, "variance").get("points", [])
    chosen = _spaced(len(points), _DEPTHS)
    kinds = {
        "spatial": "spatial_share",
        "channel": "channel_share",
        "spatial, raw": "spatial",
        "channel, raw": "channel",
    }
    rows = [["pool", "variance", *(points[at] for at in chosen)]]
    for pool, each in runs.items() if points else ():
        for kind, key in kinds.items():
            rows.append([pool, kind, *(_show(_mean(each, "variance", key, at), "{:.3g}") for at in chosen)])
    remark = (
        "Variance of the patch tokens over the patches of an image (spatial) and over the channels of a token, as a "
        "share of their mean square and raw, after half-blocks (Park & Kim, arXiv 2202.06709; class and register "
        "tokens left out). All depths are in diagnostics.json of each run."
    )
    return Section("Variance over depth", remark, rows, short=False)


def _exponents(runs: dict[str, Runs]) -> Section:
    trained = {pool: each for pool, each in runs.items() if all(run["exponents"]["steps"] for run in each)}
    steps = _first(trained, "exponents").get("steps", [])
    chosen = _spaced(len(steps), _STEPS)
    rows = [["pool", *(f"step {steps[at]}" for at in chosen)]]
    for pool, each in trained.items():
        cells = []
        for at in chosen:
            low, middle, high = (_show(_mean(each, "exponents", name, at)) for name in ("min", "median", "max"))
            cells.append(middle if low == high else f"{middle} ({low} to {high})")
        rows.append([pool, *cells])
    remark = "Median exponent p, and the least and greatest of all groups."
    return Section("Exponents over training", remark, rows, short=True)


def _spaced(count: int, wanted: int) -> list[int]:
    """Return `wanted` evenly spaced positions of `count`, including the first and the last."""
    return sorted({round((count - 1) * part / (wanted - 1)) for part in range(wanted)}) if count else []


def _removal(runs: dict[str, Runs], found: dict[str, Any]) -> Section:
    rows = [["pool", f"{found['metric']} %", "without the salient part", "with such a box elsewhere", "overlap %"]]
    for pool, each in runs.items():
        values = [_mean(each, "removal", key) for key in ("whole", "salient", "control", "overlap")]
        if None not in values:
            rows.append([pool, *map(_percent, values)])
    remark = (
        "The salient part is the one that the set's masks show; the box around it gets the median colour of the rest. "
        "Elsewhere: the same box moved to where it covers least of it; overlap: how much of it that still covers."
    )
    return Section("Without the salient part", remark, rows, short=True)


def _resolution(runs: dict[str, Runs], found: dict[str, Any]) -> Section:
    points = _first(runs, "resolution") or []
    rows = [["pool", *(f"{point['size'][0]} px" for point in points)]]
    for pool, each in runs.items() if points else ():
        cells = []
        for at in range(len(points)):
            accuracy, ms = (_mean(each, "resolution", at, name) for name in ("accuracy", "ms"))
            cells.append(f"{_percent(accuracy)} ({_show(ms)} ms)")
        rows.append([pool, *cells])
    images = _first(runs, "accuracy_images")
    remark = (
        f"{found['metric']} in % on {images} images of {found['dataset']} at other sizes than trained at (position "
        "embedding resampled), and the image tower's time an image in batches of 32, of one head after the other on "
        "one machine."
    )
    return Section("Over resolution and latency", remark, rows, short=True)
