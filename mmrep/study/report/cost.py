"""Accuracy against cost, with the Pareto front, and the table of costs."""

from mmrep.study.report.facts import Facts, named
from mmrep.study.report.figures import Axis, Point, Scatter
from mmrep.study.report.model import Column, Panels, Row, Section, Table
from mmrep.study.report.words import metric_words

SPEED_NOTE = (
    "Speeds were measured one head after the other on one machine, training as the median and embedding as the best of "
    "several; on a shared machine differences of a few percent mean nothing."
)


def pareto(points: list[tuple[float, float]]) -> list[bool]:
    """Return for each (cost, value) whether no other point is at least as good in both and better in one."""
    return [
        not any(x2 <= x and y2 >= y and (x2, y2) != (x, y) for j, (x2, y2) in enumerate(points) if j != i)
        for i, (x, y) in enumerate(points)
    ]


def section(facts: Facts) -> Section:
    """Return the section on cost."""
    columns = [
        Column("pool", "arm", term="arm"),
        Column("params", "parameters", "number", "M"),
        Column("gmacs", "GMACs/image", "number", term="gmacs", digits=3),
        Column("pairs_per_s", "train pairs/s", "count"),
        Column("images_per_s", "embed images/s", "count"),
        Column("peak_mb", "peak MB", "count", term="memory"),
    ]
    rows: list[Row] = []
    for arm in facts.arms:
        costs: Row = {column.key: facts.cost(arm, column.key) for column in columns[1:]}
        rows.append({**costs, "pool": arm, "params": facts.cost(arm, "params") / 1e6})
    table = Table("Cost", columns, rows, f"Means over seeds. {SPEED_NOTE}", short=True)
    return Section("cost", "Accuracy and cost", [], [*_panels(facts), table])


def _panels(facts: Facts) -> list[Panels]:
    metric = facts.main_metric
    if metric is None or len(facts.arms) < 2:
        return []
    y = Axis(metric_words(metric)[1], "%", share=True)
    axes = {
        "latency": (Axis("latency", "ms an image"), lambda arm: 1000 / max(facts.cost(arm, "images_per_s"), 1e-9)),
        "peak memory": (Axis("peak memory", "MB"), lambda arm: facts.cost(arm, "peak_mb")),
        "multiply-adds": (Axis("multiply-adds", "GMACs an image"), lambda arm: facts.cost(arm, "gmacs")),
    }
    figures = []
    for name, (x, cost) in axes.items():
        places = [(cost(arm), facts.mean(arm, metric)) for arm in facts.arms]
        front = pareto(places)
        points = [
            Point(arm, *place, facts.spread(arm, metric) or 0.0, on)
            for arm, place, on in zip(facts.arms, places, front, strict=True)
        ]
        best = ", ".join(arm for arm, on in zip(facts.arms, front, strict=True) if on)
        figures.append(
            Scatter(f"Against {name}", f"{y.title} against {name}. On the Pareto front: {best}.", x, y, points)
        )
    spread = ", whiskers: ± one SD over seeds" if len(facts.seeds) > 1 else ""
    caption = (
        f"{named(metric)}. Filled: on the Pareto front (no other arm is both better and cheaper), joined by the grey "
        "line. "
        f"Points are means over seeds{spread}. Neither axis starts at zero."
    )
    return [Panels("", caption, [*figures])]
