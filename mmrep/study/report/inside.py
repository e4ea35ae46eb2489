"""The diagnostics of a study: tables of means over seeds, and figures over depth and image size."""

import statistics
from typing import Any

from mmrep.study.report.facts import Facts
from mmrep.study.report.figures import Axis, DotRow, Dots, Figure, Line, Lines
from mmrep.study.report.model import Block, Bullets, Column, Panels, Row, Section, Sheet, Table
from mmrep.study.report.training import DRAWN
from mmrep.study.results import Results

_DEPTHS, _STEPS = 4, 5

Runs = list[dict[str, Any]]


def left_out(results: Results) -> list[str]:
    """Return the reasons why measurements are missing, each once."""
    runs = (results.get("diagnostics") or {}).get("runs", {}).values()
    return list(dict.fromkeys(reason for run in runs for reason in run["left_out"].values()))


def diagnosed(facts: Facts) -> dict[str, Runs]:
    """Return the diagnostics of every arm that has any, run by run."""
    found = (facts.results.get("diagnostics") or {}).get("runs", {})
    runs = {
        arm: [found[key] for run in facts.runs(arm) if (key := f"{arm}-{run['seed']}") in found] for arm in facts.arms
    }
    return {arm: each for arm, each in runs.items() if each}


def _mean(runs: Runs, *path: str | int) -> float | None:
    """Return the mean over runs of the value at a path, or None where a run lacks it."""
    values: list[Any] = list(runs)
    for key in path:
        values = [None if value is None else value[key] for value in values]
    return None if None in values else statistics.fmean(values)


def _first(runs: dict[str, Runs], name: str) -> Any:
    """Return a part of the diagnostics of the first run that has it, or an empty one."""
    return next((run[name] for each in runs.values() for run in each if run[name]), {})


def _overview(runs: dict[str, Runs], found: dict[str, Any]) -> Table:
    floor = (_first(runs, "dependence") or {}).get("floor")
    columns = [
        Column("pool", "arm", term="arm"),
        Column("effective", "patches that count", "share", "%", "effective", 1),
        Column("off", "units off", "share", "%", "off", 1),
        Column("dead", "dead", "share", "%", "dead", 1),
        Column("between", "r between", "number", term="between", digits=3),
        Column("within", "r within", "number", term="within", digits=3, rank=2),
        Column("hsic", "HSIC", "number", term="hsic", digits=3, rank=1),
    ]
    rows: list[Row] = [
        {
            "pool": arm,
            "effective": _mean(each, "patch_weights", "effective_share"),
            "off": _mean(each, "dead_units", "overall_off_share"),
            "dead": _mean(each, "dead_units", "overall_dead_share"),
            "between": _mean(each, "dependence", "between"),
            "within": _mean(each, "dependence", "within"),
            "hsic": _mean(each, "dependence", "hsic_rbf"),
        }
        for arm, each in runs.items()
    ]
    expected = "" if floor is None else f" ({floor:.3f} expected of independent channels)"
    note = (
        f"On {_first(runs, 'images')} images of {found['dataset']}. Patches that count: (Σ|w|)² / (N Σw²) of the patch "
        "weights w, 100% if all weigh the same. Off: pre-activations of the trunk's MLPs that are ≤ 0; dead: units ≤ 0 "
        "on every token. r: mean absolute correlation of channels of different groups, and within a group, where the "
        f"groups are the channels of one attention head of the trunk each, for all arms alike{expected}; HSIC: between "
        "groups (normalised, RBF kernel), 0 if independent."
    )
    return Table("Inside the models", columns, rows, note, short=True)


def _depth(runs: dict[str, Runs]) -> Table:
    points: list[str] = _first(runs, "variance").get("points", [])
    chosen = _spaced(len(points), _DEPTHS)
    kinds = {
        "spatial": "spatial_share",
        "channel": "channel_share",
        "spatial, raw": "spatial",
        "channel, raw": "channel",
    }
    columns = [Column("pool", "arm", term="arm"), Column("variance", "variance")]
    columns += [Column(points[at], points[at], "number", digits=3) for at in chosen]
    rows: list[Row] = [
        {"pool": arm, "variance": kind, **{points[at]: _mean(each, "variance", key, at) for at in chosen}}
        for arm, each in (runs.items() if points else ())
        for kind, key in kinds.items()
    ]
    note = (
        "Variance of the patch tokens over the patches of an image (spatial) and over the channels of a token, as a "
        "share of their mean square and raw, after half-blocks (Park & Kim, arXiv 2202.06709; class and register "
        "tokens left out). All depths are in diagnostics.json of each run."
    )
    return Table("Variance over depth", columns, rows, note, folded=True)


def _exponents(runs: dict[str, Runs]) -> Table:
    trained = {arm: each for arm, each in runs.items() if all(run["exponents"]["steps"] for run in each)}
    steps = _first(trained, "exponents").get("steps", [])
    chosen = _spaced(len(steps), _STEPS)
    columns = [Column("pool", "arm", term="arm"), Column("exponent", "exponent", term="exponent")]
    columns += [Column(f"step {steps[at]}", f"step {steps[at]}", "number") for at in chosen]
    rows: list[Row] = []
    for arm, each in trained.items():
        values = {
            kind: {f"step {steps[at]}": _mean(each, "exponents", kind, at) for at in chosen}
            for kind in ("median", "min", "max")
        }
        same = values["min"] == values["max"]
        rows += [{"pool": arm, "exponent": kind, **row} for kind, row in values.items() if kind == "median" or not same]
    return Table(
        "Exponents over training",
        columns,
        rows,
        "Median exponent p, and the least and greatest of all groups.",
        True,
        folded=True,
    )


def _spaced(count: int, wanted: int) -> list[int]:
    """Return `wanted` evenly spaced positions of `count`, including the first and the last."""
    return sorted({round((count - 1) * part / (wanted - 1)) for part in range(wanted)}) if count else []


def _removal(runs: dict[str, Runs], found: dict[str, Any]) -> Table:
    columns = [
        Column("pool", "arm", term="arm"),
        Column("whole", f"{found['metric']}, whole", "share", "%", digits=1),
        Column("salient", "salient part removed", "share", "%", digits=1),
        Column("control", "box elsewhere", "share", "%", digits=1),
        Column("overlap", "overlap", "share", "%", digits=1, rank=1),
    ]
    rows: list[Row] = []
    for arm, each in runs.items():
        values = {key: _mean(each, "removal", key) for key in ("whole", "salient", "control", "overlap")}
        if None not in values.values():
            rows.append({"pool": arm, **values})
    note = (
        "The salient part is the one that the set's masks show; the box around it gets the median colour of the rest. "
        "Elsewhere: the same box moved to where it covers least of it; overlap: how much of it that still covers."
    )
    return Table("Without the salient part", columns, rows, note, short=True, folded=True)


def _resolution(runs: dict[str, Runs], found: dict[str, Any]) -> Table:
    sizes = [point["size"][0] for point in _first(runs, "resolution") or []]
    columns = [Column("pool", "arm", term="arm")]
    for size in sizes:
        columns += [Column(f"{size} px", f"{size} px", "share", "%", digits=1)]
        columns += [Column(f"{size} ms", f"{size} px", "number", "ms", rank=1)]
    rows: list[Row] = []
    for arm, each in runs.items() if sizes else ():
        row: Row = {"pool": arm}
        for at, size in enumerate(sizes):
            row[f"{size} px"] = _mean(each, "resolution", at, "accuracy")
            row[f"{size} ms"] = _mean(each, "resolution", at, "ms")
        rows.append(row)
    note = (
        f"{found['metric']} in % on {_first(runs, 'accuracy_images')} images of {found['dataset']} at other sizes than "
        "trained at (position embedding resampled), and the image tower's time an image in batches of 32, of one head "
        "after the other on one machine."
    )
    return Table("Over resolution and latency", columns, rows, note, short=True, folded=True)


def tables(facts: Facts) -> list[Table]:
    """Return all tables of the diagnostics, or none where there are none."""
    found, runs = facts.results.get("diagnostics") or {}, diagnosed(facts)
    if not runs:
        return []
    made = (_overview(runs, found), _depth(runs), _exponents(runs), _removal(runs, found), _resolution(runs, found))
    return [table for table in made if table.rows]


def _profile(runs: dict[str, Runs], title: str, y: Axis, names: tuple[str, ...], *path: str) -> list[Figure]:
    """Return a line chart of a list of values over depth."""
    lines = []
    for arm, each in runs.items():
        count = min((len(value) for run in each if (value := _at(run, *path))), default=0)
        values = [_mean(each, *path, at) for at in range(count)]
        if count > 1 and None not in values:
            lines.append(Line(arm, arm, [(float(x), value) for x, value in enumerate(values) if value is not None]))
    summary = f"{title} over depth, from first to last: " + "; ".join(
        f"{line.arm} {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines
    )
    return [Lines(title, summary, Axis("depth", names=names), y, lines)] if lines else []


def _at(run: Any, *path: str) -> Any:
    for key in path:
        run = run[key] if run else None
    return run


def _depth_figures(runs: dict[str, Runs]) -> list[Figure]:
    points: list[str] = _first(runs, "variance").get("points", [])
    names = tuple(
        point.replace("block ", "b").replace("attention", "attn").replace("embedding", "emb") for point in points
    )
    dead = {
        arm: [{"dead": _shares(run["dead_units"]), "off": run["dead_units"]} for run in each]
        for arm, each in runs.items()
    }
    blocks = tuple(f"b{i}" for i in range(len((_first(runs, "dead_units") or {}).get("units", []))))
    share = Axis("share", "%", share=True)
    return [
        *_profile(runs, "Spatial variance", Axis("share of mean square"), names, "variance", "spatial_share"),
        *_profile(runs, "Channel variance", Axis("share of mean square"), names, "variance", "channel_share"),
        *_profile(dead, "MLP units off", share, blocks, "off", "off_share"),
        *_profile(dead, "Dead MLP units", share, blocks, "dead"),
    ]


def _shares(units: dict[str, Any] | None) -> list[float] | None:
    return [dead / max(count, 1) for dead, count in zip(units["dead"], units["units"], strict=True)] if units else None


def _removal_figures(table: Table) -> list[Figure]:
    if not table.rows:
        return []
    rows = []
    for row in table.rows:
        values = [row[key] for key in ("whole", "control", "salient")]
        rows.append(DotRow(str(row["pool"]), tuple(value for value in values if isinstance(value, float))))
    marks = ("whole image", "box elsewhere", "salient part removed")
    summary = "; ".join(f"{row.arm}: " + ", ".join(f"{100 * v:.1f}%" for v in row.values) for row in rows)
    return [Dots("Without the salient part", summary, marks, rows, Axis("accuracy", "%", share=True))]


def _resolution_figures(runs: dict[str, Runs], metric: str) -> list[Figure]:
    sizes = [point["size"][0] for point in _first(runs, "resolution") or []]
    if len(sizes) < 2:
        return []
    accuracy = {
        arm: [_mean(each, "resolution", at, "accuracy") for at in range(len(sizes))] for arm, each in runs.items()
    }
    times = {arm: [_mean(each, "resolution", at, "ms") for at in range(len(sizes))] for arm, each in runs.items()}
    y, figures = Axis(metric, "%", share=True), []
    for title, x, places in (
        ("Over image size", Axis("image size", "px"), {arm: [float(size) for size in sizes] for arm in runs}),
        ("Over latency", Axis("latency", "ms an image"), times),
    ):
        lines = [
            Line(
                arm,
                arm,
                [(a, b) for a, b in zip(places[arm], accuracy[arm], strict=True) if a is not None and b is not None],
            )
            for arm in runs
        ]
        summary = "; ".join(f"{line.arm}: {', '.join(f'{100 * v:.1f}%' for _, v in line.points)}" for line in lines)
        figures.append(Lines(title, f"{title}: {summary}", x, y, [line for line in lines if line.points], marks=True))
    return [*figures]


def section(facts: Facts) -> Section | None:
    """Return the section on the inside of the models."""
    found, runs = facts.results.get("diagnostics") or {}, diagnosed(facts)
    missing = [f"Not measured: {reason}." for reason in left_out(facts.results)]
    made = {table.title: table for table in tables(facts)}
    if not made:
        return Section("inside", "Diagnostics", [], [Bullets(missing)]) if missing else None
    drawn = {arm: each for arm, each in runs.items() if arm in facts.chosen(DRAWN)}
    removal = made.get("Without the salient part")
    figures = {
        "Variance over depth": (
            _depth_figures(drawn),
            "Means over seeds, after the embedding and after every half-block; blocks count from 0.",
        ),
        "Without the salient part": (_removal_figures(removal) if removal else [], ""),
        "Over resolution and latency": (_resolution_figures(drawn, found["metric"]), "Means over seeds."),
    }
    blocks: list[Block] = []
    for title, table in made.items():
        panels, caption = figures.get(title, ([], ""))
        blocks += [Panels("", caption, panels)] if panels else []
        blocks.append(table)
    if found.get("maps"):
        blocks.append(Sheet("Patch weights", _MAPS, found["maps"]))
    return Section("inside", "Diagnostics", [], [*blocks, *([Bullets(missing)] if missing else [])])


_MAPS = (
    "What each patch token adds to the embedding of the first seed's models, along the embedding: red adds, blue takes "
    "away, as the colour bar of each head shows. Exact for linear heads and for power means of positive tokens, else "
    "to first order; a head that subtracts a minimum gives that one's part to the patch that holds it."
)
