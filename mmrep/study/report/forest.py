"""Forest plots, slopes and strips: charts of differences and of values seed by seed."""

from mmrep.study.report.figures import Forest, ForestRow, Slopes
from mmrep.study.report.model import Look
from mmrep.study.report.svg import (
    BOLD,
    CHAR,
    Scale,
    chart,
    cut,
    element,
    hint,
    marker,
    padded,
    path,
    swarm,
    text,
    x_axis,
    y_axis,
)
from mmrep.study.report.values import MISSING, Seeds, signed, spanned


def _range(rows: list[ForestRow]) -> tuple[float, float]:
    values = [0.0]
    for row in rows:
        values += [
            row.mean,
            *row.seeds.values,
            *(row.interval or ()),
            *((row.margin, -row.margin) if row.margin else ()),
        ]
    return padded(values, 0.04)


def _mark(row: ForestRow, look: Look, scale: Scale, y: float, dots: bool, drop: float) -> str:
    """Return interval, mean and seeds of a row."""
    parts = []
    if dots:
        places = [scale(value) for value in row.seeds.values]
        for x, level, seed, value in zip(places, swarm(places, 5.5, 3), row.seeds.seeds, row.seeds.values, strict=True):
            note = hint(f"seed {seed}: {signed(100 * value, 2)}")
            parts.append(element("circle", note, cx=x, cy=y + drop + 3.6 * level, r=2.4, class_="seed"))
    if row.interval:
        low, high = (scale(value) for value in row.interval)
        parts.append(element("line", x1=low, x2=high, y1=y, y2=y, class_="bar"))
    note = f"{row.label}: {signed(100 * row.mean, 2)}" + (f" {spanned(*row.interval, 2)}" if row.interval else "")
    parts.append(marker(look.shape, scale(row.mean), y, 5, hint(note), class_="mean"))
    return element("g", "".join(parts), class_=f"a{look.colour}")


def _band(rows: list[ForestRow], scale: Scale, tops: list[tuple[float, float]]) -> str:
    """Return the margin as one band where it is the same for all rows, else as a band behind each row."""
    margins = {row.margin for row in rows}
    if margins == {None} or not rows:
        return ""
    if len(margins) == 1:
        tops, rows = [(tops[0][0], tops[-1][1])], rows[:1]
    return "".join(
        element(
            "rect",
            x=scale(-row.margin),
            y=top,
            width=scale(row.margin) - scale(-row.margin),
            height=end - top,
            class_="band",
        )
        for row, (top, end) in zip(rows, tops, strict=True)
        if row.margin
    )


def _estimate(row: ForestRow) -> str:
    return f"{signed(100 * row.mean, 2)} {spanned(*row.interval, 2) if row.interval else ''}".strip()


def forest(key: str, figure: Forest, looks: dict[str, Look]) -> str:
    """Return a wide forest plot: label, intervals, estimate and verdict in one row."""
    rows, dots = figure.rows, any(len(row.seeds.values) > 1 for row in figure.rows)
    label = min(290.0, max(90.0, CHAR * BOLD * max(len(row.label) for row in rows) + 20))
    verdicts = max(len(row.verdict) for row in rows)
    right = 150 + (CHAR * verdicts + 16 if verdicts else 0)
    step, width, top = (38 if len(rows) <= 10 else 28) if dots else 26, 860.0, 12.0
    bottom = top + step * len(rows)
    scale = Scale(*_range(rows), label, width - right - 14)
    tops = [(top + step * i, top + step * (i + 1)) for i in range(len(rows))]
    parts = [_band(rows, scale, tops), x_axis(scale, figure.axis._replace(share=True), bottom, top, 7, signs=True)]
    parts.append(element("line", x1=scale(0), x2=scale(0), y1=top, y2=bottom, class_="zero"))
    for row, (y, _) in zip(rows, tops, strict=True):
        middle = y + (step * 0.4 if dots else step / 2)
        parts.append(
            text(label - 14, middle + 4, cut(row.label, (label - 16) / BOLD), text_anchor="end", class_="name")
        )
        parts.append(_mark(row, looks.get(row.arm, Look(0, 0)), scale, middle, dots, step * 0.3))
        parts.append(text(width - right, middle + 4, _estimate(row), class_="figure"))
        parts.append(text(width - right + 150, middle + 4, row.verdict, class_="verdict") if row.verdict else "")
    return chart(key, width, bottom + 40, figure.title, figure.summary, "".join(parts), "wide")


def narrow_forest(key: str, figure: Forest, looks: dict[str, Look]) -> str:
    """Return a narrow forest plot: label and estimate above each interval."""
    rows, dots, width, top = figure.rows, any(len(row.seeds.values) > 1 for row in figure.rows), 360.0, 4.0
    step = 38 + 6 * dots + 18 * any(row.verdict for row in rows)
    bottom = top + step * len(rows)
    scale = Scale(*_range(rows), 8, width - 8)
    tops = [(top + step * i, top + step * (i + 1)) for i in range(len(rows))]
    parts = [x_axis(scale, figure.axis._replace(share=True), bottom, top, 5, signs=True)]
    parts.append(element("line", x1=scale(0), x2=scale(0), y1=top, y2=bottom, class_="zero"))
    for row, (y, end) in zip(rows, tops, strict=True):
        estimate, line = _estimate(row), y + 14
        if row.margin:
            zone = y + (34 if row.verdict else 20)
            start, size = scale(-row.margin), scale(row.margin) - scale(-row.margin)
            parts.insert(0, element("rect", x=start, y=zone, width=size, height=end - zone, class_="band"))
        parts.append(text(4, line, cut(row.label, (width - 24 - CHAR * len(estimate)) / BOLD), class_="name halo"))
        parts.append(text(width - 4, line, estimate, text_anchor="end", class_="figure halo"))
        if row.verdict:
            line += 14
            parts.append(text(width - 4, line, row.verdict, text_anchor="end", class_="verdict halo"))
        parts.append(_mark(row, looks.get(row.arm, Look(0, 0)), scale, line + 13, dots, 11))
    return chart(key, width, bottom + 40, figure.title, figure.summary, "".join(parts), "narrow")


def slopes(key: str, figure: Slopes, looks: dict[str, Look]) -> str:
    """Return lines from the second arm to the first one, seed by seed."""
    width, height, left, right = 220.0, 240.0, 66.0, 178.0
    a, b = figure.values_a, figure.values_b
    scale = Scale(*padded([*a.values, *b.values]), height - 40, 30)
    look = looks.get(figure.a, Look(0, 0))
    parts = [y_axis(scale, figure.y, 46, right + 26)]
    for seed, first, second in zip(a.seeds, b.values, a.values, strict=True):
        note = hint(f"seed {seed}: {figure.b} {100 * first:.2f}, {figure.a} {100 * second:.2f}")
        kind = "up" if second > first else "down"
        ends = f"M{left} {scale(first):.1f}L{right} {scale(second):.1f}"
        parts.append(element("path", note, d=ends, class_=f"slope {kind}"))
    means = [sum(values.values) / len(values.values) for values in (b, a)]
    parts.append(path([(left, scale(means[0])), (right, scale(means[1]))], class_="slope average"))
    other = looks.get(figure.b, Look(0, 0))
    parts.append(
        element("g", marker(other.shape, left, scale(means[0]), 4.5, class_="mean"), class_=f"a{other.colour}")
    )
    parts.append(marker(look.shape, right, scale(means[1]), 4.5, class_="mean"))
    for place, name in ((left, cut(figure.b, 100 / BOLD)), (right, cut(figure.a, 100 / BOLD))):
        half = CHAR * BOLD * len(name) / 2
        middle = min(max(place, half), width - half)
        parts.append(text(middle, height - 18, name, text_anchor="middle", class_="name"))
    content = element("g", "".join(parts), class_=f"a{look.colour}")
    return chart(key, width, height - 6, figure.title, figure.summary, content)


def strip(values: Seeds, low: float, high: float, look: Look) -> str:
    """Return a small strip of dots on the scale of all arms, for a cell of a table. The cell has the values as text."""
    if not values.values:
        return MISSING
    width, height = 120.0, 18.0
    scale = Scale(low, high, 6, width - 6)
    places = [scale(value) for value in values.values]
    dots = "".join(
        f"M{x:.1f} {height / 2 + 3.4 * level:.1f}h0" for x, level in zip(places, swarm(places, 4.5, 3), strict=True)
    )
    mean = scale(sum(values.values) / len(values.values))
    content = element("path", d=dots, class_="dots") + element(
        "line", x1=mean, x2=mean, y1=1, y2=height - 1, class_="tickmark"
    )
    attributes = {"viewBox": f"0 0 {width:.0f} {height:.0f}", "aria_hidden": "true", "class_": f"strip a{look.colour}"}
    return element("svg", content, **attributes)
