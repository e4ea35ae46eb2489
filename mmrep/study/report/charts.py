"""Line charts, scatter plots and dot plots, and the choice of the chart for a figure."""

import math
from dataclasses import replace

from mmrep.study.report.figures import Axis, Dots, Figure, Forest, Line, Lines, Scatter, Slopes
from mmrep.study.report.forest import forest, narrow_forest, slopes
from mmrep.study.report.model import Look
from mmrep.study.report.svg import (
    BOLD,
    CHAR,
    DASHES,
    Scale,
    chart,
    cut,
    element,
    hint,
    marker,
    padded,
    path,
    spaced,
    text,
    x_axis,
    y_axis,
)

_THIN, _NAMED = 60, 14
_GREY = Look(0, 0)


def draw(key: str, figure: Figure, looks: dict[str, Look], wide: bool = False) -> str:
    """Return a figure as SVG. A `wide` forest plot comes with a narrow one, of which the page shows what fits."""
    if isinstance(figure, Forest):
        small = narrow_forest(f"{key}n", figure, looks)
        return forest(key, figure, looks) + small if wide else small
    if isinstance(figure, Lines):
        return lines(key, figure, looks)
    if isinstance(figure, Scatter):
        return scatter(key, figure, looks)
    if isinstance(figure, Slopes):
        return slopes(key, figure, looks)
    return dots(key, figure, looks)


def _finite(line: Line) -> Line:
    """Return a line without the points that are not finite, as those of a run that diverged."""
    points = [point for point in line.points if all(map(math.isfinite, point))]
    thin = [[point for point in each if all(map(math.isfinite, point))] for each in line.thin]
    return replace(line, points=points, thin=thin, band=[each for each in line.band if all(map(math.isfinite, each))])


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most about 60 points, the last one included."""
    step = max(1, -(-len(points) // _THIN))
    return points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]


def _line(line: Line, look: Look, x: Scale, y: Scale, faint: bool, marks: bool, dash: str) -> str:
    """Return the seeds, the band and the mean of a line."""
    parts = [
        path(((x(a), y(b)) for a, b in _thinned(points)), class_="thin faint" if faint else "thin")
        for points in line.thin
    ]
    if line.band:
        outline = [(x(a), y(high)) for a, _, high in line.band] + [(x(a), y(low)) for a, low, _ in reversed(line.band)]
        parts.insert(0, path(outline, class_="area"))
    parts.append(path(((x(a), y(b)) for a, b in line.points), class_="line", stroke_dasharray=dash))
    if marks or len(line.points) == 1:
        parts += [
            marker(look.shape, x(a), y(b), 2.6, hint(f"{line.label or line.arm}: {b:.4g} at {a:g}"), class_="dot")
            for a, b in line.points
        ]
    return element("g", "".join(parts), class_=f"a{look.colour}")


def lines(key: str, figure: Lines, looks: dict[str, Look]) -> str:
    """Return a line chart whose lines are labelled at their right ends."""
    figure = replace(figure, lines=[line for line in map(_finite, figure.lines) if line.points])
    if not figure.lines:
        return ""
    shown = [line for line in figure.lines if line.label]
    room = min(140.0, max((CHAR * len(line.label) for line in shown), default=0) + 34) if shown else 12
    width, height, left = 400.0, max(240.0, 14.0 * len(shown) + 70), 46.0
    every = [p for line in figure.lines for points in (line.points, *line.thin) for p in points]
    xs, ys = [p[0] for p in every], [p[1] for p in every]
    ys += [value for line in figure.lines for _, low, high in line.band for value in (low, high)]
    low, high = padded([*ys, *(figure.span or ())])
    if figure.y.share and min(ys) >= 0:
        low = max(low, 0.0)
    start, end = (min(xs), max(xs)) if min(xs) < max(xs) else padded(xs)
    x, y = Scale(start, end, left, width - room), Scale(low, high, height - 40, 30)
    parts = [y_axis(y, figure.y, left, x.end), x_axis(x, figure.x, height - 40, height - 44)]
    faint = len(figure.lines) > 5
    alone = len({line.arm for line in figure.lines}) == 1
    for line in figure.lines:
        look = looks.get(line.arm, _GREY)
        parts.append(_line(line, look, x, y, faint, figure.marks, "" if alone else DASHES[look.shape]))
    ends = [y(line.points[-1][1]) for line in shown]
    for line, wanted, place in zip(shown, ends, spaced(ends, 13, 24, height - 40), strict=True):
        look = looks.get(line.arm, _GREY)
        last = x(line.points[-1][0])
        leader = path([(last + 3, wanted), (x.end + 20, place)], class_="leader")
        label = text(x.end + 24, place + 4, cut(line.label, room - 24), class_="label")
        parts.append(element("g", leader + label, class_=f"a{look.colour}"))
    return chart(key, width, height, figure.title, figure.summary, "".join(parts))


def _corners(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the steps of a front: a cost buys the value of the best point that is not dearer."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if found:
            found.append((x, found[-1][1]))
        found.append((x, y))
    return found


def scatter(key: str, figure: Scatter, looks: dict[str, Look]) -> str:
    """Return a scatter plot whose points are labelled next to them where there is room."""
    width, height, left, right = 320.0, 290.0, 46.0, 308.0
    x = Scale(*padded([p.x for p in figure.points], 0.12), left, right)
    y = Scale(*padded([v for p in figure.points for v in (p.y - p.spread, p.y + p.spread)], 0.08), height - 40, 30)
    parts = [y_axis(y, figure.y, left, right), x_axis(x, figure.x, height - 40, 30, 4)]
    front = _corners([(p.x, p.y) for p in figure.points if p.front])
    parts.append(path([(x(a), y(b)) for a, b in front], class_="front"))
    places = [(x(p.x), y(p.y)) for p in figure.points]
    taken = [(a - 5, b - 5, a + 5, b + 5) for a, b in places]
    for p, (a, b) in sorted(zip(figure.points, places, strict=True), key=lambda each: not each[0].front):
        look = looks.get(p.arm, _GREY)
        value = 100 * p.y if figure.y.share else p.y
        note = hint(f"{p.arm}: {value:.2f}, {p.x:.4g} {figure.x.unit}{', on the front' if p.front else ''}")
        whisker = (
            element("line", x1=a, x2=a, y1=y(p.y - p.spread), y2=y(p.y + p.spread), class_="whisker")
            if p.spread
            else ""
        )
        mark = marker(look.shape, a, b, 4.8, note, class_="mean" if p.front else "hollow")
        label = cut(p.arm, 110)
        named = p.front or look == _GREY or len(figure.points) <= _NAMED
        spot = named and _spot(a, b, CHAR * len(label), taken, (left + 4, 24, width, height - 42))
        if spot:
            taken.append(spot)
            mark += text(spot[0], spot[3] - 3, label, class_="label halo")
        parts.append(element("g", whisker + mark, class_=f"a{look.colour}"))
    return chart(key, width, height, figure.title, figure.summary, "".join(parts))


Box = tuple[float, float, float, float]


def _spot(a: float, b: float, size: float, taken: list[Box], inside: Box) -> Box | None:
    """Return a free box for the label of a point, or None where every place near it is taken."""
    starts = (
        (a + 8, b - 7), (a - 8 - size, b - 7), (a - size / 2, b - 20), (a - size / 2, b + 7), (a + 6, b - 19),
        (a + 6, b + 5), (a - 6 - size, b - 19), (a - 6 - size, b + 5),
    )  # fmt: skip
    for u, v in starts:
        box = (u, v, u + size, v + 14)
        fits = box[0] >= inside[0] and box[1] >= inside[1] and box[2] <= inside[2] and box[3] <= inside[3]
        if fits and all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken):
            return box
    return None


def dots(key: str, figure: Dots, looks: dict[str, Look]) -> str:
    """Return a dot plot: full, half-strong and hollow marks joined by a line."""
    step, width, top = 24.0, 400.0, 34.0
    left = min(160.0, CHAR * BOLD * max(len(row.arm) for row in figure.rows) + 20)
    bottom = top + step * len(figure.rows)
    low, high = padded([value for row in figure.rows for value in row.values])
    scale = Scale(max(low, 0.0) if low > -0.05 else low, high, left, width - 14)
    parts = [x_axis(scale, Axis(figure.axis.title, figure.axis.unit, figure.axis.share), bottom, top)]
    kinds, place = ("mean", "half", "hollow"), 6.0
    for kind, name in zip(kinds, figure.marks, strict=True):
        parts.append(element("g", marker(0, place, 12, 4.2, class_=kind), class_="a0"))
        parts.append(text(place + 9, 16, name, class_="label"))
        place += CHAR * len(name) + 30
    for i, row in enumerate(figure.rows):
        y, look = top + step * (i + 0.5), looks.get(row.arm, _GREY)
        places = [scale(value) for value in row.values]
        marks = element("line", x1=min(places), x2=max(places), y1=y, y2=y, class_="whisker")
        for kind, at, value, name in reversed(list(zip(kinds, places, row.values, figure.marks, strict=True))):
            marks += marker(look.shape, at, y, 4.6, hint(f"{row.arm}, {name}: {100 * value:.1f}%"), class_=kind)
        parts.append(text(left - 12, y + 4, cut(row.arm, (left - 14) / BOLD), text_anchor="end", class_="name"))
        parts.append(element("g", marks, class_=f"a{look.colour}"))
    return chart(key, width, bottom + 40, figure.title, figure.summary, "".join(parts))
