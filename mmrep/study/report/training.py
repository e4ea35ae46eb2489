"""Training curves and exponents over training, from the thinned records of every run."""

import statistics
from collections.abc import Callable

from mmrep.evaluation.metrics import is_main
from mmrep.study.report.facts import Facts
from mmrep.study.report.figures import Axis, Figure, Line, Lines
from mmrep.study.report.model import Panels, Section
from mmrep.study.results import CurvePoint

Curve = list[tuple[float, float]]
DRAWN, _GROUPS, _VALIDATED = 12, 8, 3


def mean_curve(curves: list[Curve]) -> Curve:
    """Return the mean over runs at the steps that all of them have; runs that share no step have no mean."""
    if not curves:
        return []
    tables = [dict(curve) for curve in curves]
    steps = sorted(set(tables[0]).intersection(*tables[1:]))
    return [(step, statistics.fmean(table[step] for table in tables)) for step in steps]


def _curves(facts: Facts, arm: str, pick: Callable[[CurvePoint], float | None]) -> list[Curve]:
    """Return what `pick` takes from the records of every run of an arm."""
    found = []
    for run in facts.runs(arm):
        records = facts.results["curves"].get(f"{arm}-{run['seed']}", [])
        points = [(float(r["step"]), value) for r in records if "step" in r and (value := pick(r)) is not None]
        if points:
            found.append(points)
    return found


def _lines(facts: Facts, pick: Callable[[CurvePoint], float | None]) -> list[Line]:
    lines = []
    for arm in facts.chosen(DRAWN):
        curves = _curves(facts, arm, pick)
        if curves:
            lines.append(Line(arm, arm, mean_curve(curves) or curves[0], curves if len(curves) > 1 else []))
    return lines


def _loss(facts: Facts) -> list[Figure]:
    lines = _lines(facts, lambda record: record.get("loss"))
    if not lines:
        return []
    ends = ", ".join(f"{line.arm} {line.points[-1][1]:.3f}" for line in lines)
    whole = Lines("Training loss", f"Loss over steps; at the end: {ends}.", Axis("step"), Axis("loss"), lines)
    losses = {line.arm: dict(line.points) for line in lines}
    bases = {line.arm: losses.get(facts.baseline_of(line.arm), {}) for line in lines}
    gaps = [
        Line(line.arm, line.label, [(x, y - bases[line.arm][x]) for x, y in line.points if x in bases[line.arm]])
        for line in lines
    ]
    gaps = [line for line in gaps if line.points]
    if not facts.results["paired"] or len(gaps) < 2:
        return [whole]
    ends = ", ".join(f"{line.arm} {line.points[-1][1]:+.3f}" for line in gaps)
    title = f"Training loss minus that of {facts.baseline}"
    return [whole, Lines(title, f"{title}; at the end: {ends}.", Axis("step"), Axis("difference of losses"), gaps)]


def validated(record: CurvePoint) -> dict[str, float]:
    """Return the validation metrics of a record, in an entry of their own or next to the loss."""
    aside = {key: value for key, value in record.items() if "/" in key and isinstance(value, int | float)}
    return {**record.get("evaluation", {}), **aside}


def _validation(facts: Facts) -> list[Figure]:
    records = (record for curve in facts.results["curves"].values() for record in curve)
    names = dict.fromkeys(name for record in records for name in validated(record))
    shares = [name for name in names if is_main(name)][:_VALIDATED]
    figures: list[Figure] = []
    for name in shares:
        lines = _lines(facts, lambda record, name=name: validated(record).get(name))  # type: ignore[misc]
        if any(len(line.points) > 1 for line in lines):
            ends = ", ".join(f"{line.arm} {100 * line.points[-1][1]:.2f}%" for line in lines)
            y = Axis(name.rpartition("/")[2], "%", share=True)
            figures.append(Lines(name, f"{name} over steps; at the end: {ends}.", Axis("step"), y, lines, marks=True))
    return figures


def _exponents(facts: Facts) -> list[Figure]:
    figures: list[Figure] = []
    drawn = {arm: lines for arm in facts.chosen(DRAWN) if (lines := _groups(facts, arm) or _range(facts, arm))}
    values = [y for lines in drawn.values() for line in lines for _, y in line.points]
    for arm in drawn:
        lines = drawn[arm]
        ends = ", ".join(f"{line.label} {line.points[-1][1]:.2f}" for line in lines)
        figures.append(
            Lines(
                arm,
                f"Exponents of {arm} over steps; at the end: {ends}.",
                Axis("step"),
                Axis("p"),
                lines,
                span=(min(values), max(values)),
            )
        )
    return figures


def _groups(facts: Facts, arm: str) -> list[Line]:
    """Return a line for each group of channels, or none where the groups were not logged."""
    runs = [facts.results["curves"].get(f"{arm}-{run['seed']}", []) for run in facts.runs(arm)]
    count = max((len(record.get("exponents", [])) for run in runs for record in run), default=0)
    lines = []
    for group in range(count):
        curves = _curves(facts, arm, lambda record, g=group: dict(enumerate(record.get("exponents", []))).get(g))  # type: ignore[misc]
        label = f"group {group + 1}" if 1 < count <= _GROUPS else "all channels" if count == 1 else ""
        lines.append(
            Line(arm, label, mean_curve(curves) or curves[0], curves if count <= _GROUPS and len(curves) > 1 else [])
        )
    return lines


def _range(facts: Facts, arm: str) -> list[Line]:
    """Return the median exponent with a band from the least to the greatest."""
    found = [mean_curve(_curves(facts, arm, lambda r, k=k: r.get(f"exponent_{k}"))) for k in ("min", "median", "max")]  # type: ignore[misc]
    low, middle, high = (dict(curve) for curve in found)
    if not middle:
        return []
    band = [(step, low[step], high[step]) for step in middle if step in low and step in high]
    return [Line(arm, "median", list(middle.items()), band=band)]


def section(facts: Facts) -> Section | None:
    """Return the section on training."""
    curves, exponents = [*_loss(facts), *_validation(facts)], _exponents(facts)
    if not curves and not exponents:
        return None
    left = len(facts.arms) - len(facts.chosen(DRAWN))
    several = "Thick: mean over seeds; thin: single seeds. " if len(facts.seeds) > 1 else ""
    more = f" {left} more arms are not drawn: the baseline, arms of contrasts and the best are." if left else ""
    blocks = [Panels("", f"{several}Records are thinned to at most 100 a run.{more}", curves)] if curves else []
    if exponents:
        caption = (
            "Exponent p of each group of channels: 1 is the mean, and the maximum is approached as p grows. Bands: "
            "from the least to the greatest exponent, where the groups were not logged one by one."
        )
        blocks.append(Panels("Exponents", caption, exponents))
    return Section("training", "Training", [], [*blocks])
