"""Parts of charts as SVG text: elements, scales, axes, marks, labels that do not overlap. All text is escaped here."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from markupsafe import escape

from mmrep.markup import one_line
from mmrep.study.report.figures import Axis

CHAR = 6.4
"""Width of an average character of a chart's text (11 px) in pixels."""

BOLD = 1.25
"""Width of bold text as a multiple of that of plain text."""

DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 3", "4 2 1 2 1 2")


def element(name: str, content: str = "", **attributes: str | float) -> str:
    """Return an element. `content` is markup; attributes are escaped, and spelled as SVG does (`text_anchor`)."""
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items() if value != ""
    ]
    return f"<{name}{''.join(parts)}>{content}</{name}>" if content else f"<{name}{''.join(parts)}/>"


def _value(value: str | float) -> str:
    return str(escape(one_line(value))) if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, **attributes: str | float) -> str:
    """Return a line of text."""
    return element("text", str(escape(one_line(content))), x=x, y=y, **attributes)


def hint(content: str) -> str:
    """Return the tooltip of the element that it is put into."""
    return element("title", str(escape(one_line(content))))


def cut(content: str, width: float) -> str:
    """Return text shortened to a width in pixels, with its start and its end."""
    room = max(4, int(width / CHAR))
    if len(content) <= room:
        return content
    head = (room - 1) // 2
    return f"{content[:head]}…{content[len(content) - (room - 1 - head) :]}"


def path(points: Iterable[tuple[float, float]], **attributes: str | float) -> str:
    """Return a line through points."""
    joined = "L".join(f"{_value(x)} {_value(y)}" for x, y in points)
    return element("path", "", d=f"M{joined}", **attributes) if joined else ""


def marker(shape: int, x: float, y: float, r: float, content: str = "", class_: str = "") -> str:
    """Return a circle, square, diamond, triangle (up, down) or pentagon around a point."""
    if shape == 0:
        return element("circle", content, cx=x, cy=y, r=r, class_=class_)
    corners = {
        1: [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        2: [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
        3: [(0, -1.25), (1.2, 0.9), (-1.2, 0.9)],
        4: [(0, 1.25), (1.2, -0.9), (-1.2, -0.9)],
        5: [(0, -1.2), (1.15, -0.35), (0.7, 1), (-0.7, 1), (-1.15, -0.35)],
    }[shape]
    joined = "L".join(f"{_value(x + r * dx)} {_value(y + r * dy)}" for dx, dy in corners)
    return element("path", content, d=f"M{joined}Z", class_=class_)


class Scale(NamedTuple):
    """A linear scale from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def padded(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    """Return the range of values with some room at both ends; equal values get a range around them."""
    low, high = min(values), max(values)
    room = (high - low) * pad or max(abs(high) * 0.05, 1e-3)
    return low - room, high + room


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return round values within a range, about `count`."""
    raw = (high - low) / max(count, 1)
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * each for each in (1, 2, 2.5, 5, 10) if size * each >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [0.0 if i == 0 else i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: Sequence[float], share: bool, signs: bool = False) -> list[str]:
    """Return the labels of ticks, with as many decimals as their step needs."""
    shown = [100 * value if share else value for value in values]
    step = min((b - a for a, b in pairwise(shown)), default=abs(shown[0]) if shown else 1) or 1
    if max(map(abs, shown), default=0) >= 1e6:
        return [f"{value:.3g}" for value in shown]
    digits = next((d for d in range(5) if abs(round(step, d) - step) < 1e-6 * step), 5)
    return [f"{value:{'+' if signs and value else ''}.{digits}f}".replace("-", "−") for value in shown]


def axis_title(axis: Axis) -> str:
    """Return the title of an axis with its unit."""
    return f"{axis.title}, {axis.unit}" if axis.unit else axis.title


def x_axis(scale: Scale, axis: Axis, y: float, top: float, count: int = 5, signs: bool = False) -> str:
    """Return ticks, labels and title of a horizontal axis at height `y`, with faint lines up to `top`."""
    values = ticks(scale.low, scale.high, count)
    labels = tick_texts(values, axis.share, signs)
    if axis.names:
        every = max(1, math.ceil(len(axis.names) * 44 / abs(scale.end - scale.start)))
        places = range(0, len(axis.names), every)
        values, labels = [float(i) for i in places], [axis.names[i] for i in places]
    parts = []
    for value, label in zip(values, labels, strict=True):
        x = scale(value)
        parts.append(element("line", x1=x, x2=x, y1=top, y2=y, class_="grid"))
        parts.append(text(x, y + 15, label, text_anchor="middle", class_="tick"))
    title = text(scale.end, y + 31, axis_title(axis), text_anchor="end", class_="axis")
    return "".join([*parts, title])


def y_axis(scale: Scale, axis: Axis, left: float, right: float, count: int = 5) -> str:
    """Return ticks and labels of a vertical axis, with faint lines to `right`, and its title above it."""
    values = ticks(scale.low, scale.high, count)
    parts = []
    for value, label in zip(values, tick_texts(values, axis.share), strict=True):
        y = scale(value)
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, label, text_anchor="end", class_="tick"))
    return "".join([*parts, text(2, scale.end - 10, axis_title(axis), class_="axis")])


def spaced(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places for labels near the wanted ones, at least `gap` apart, between `low` and `high` if possible.

    Labels that would touch form a block around the mean of their wanted places (isotonic regression).
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([places[i] - gap * rank])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    starts = [fmean(block) for block in blocks for _ in block]
    most = high - gap * (len(places) - 1)
    found = list(places)
    for rank, (i, start) in enumerate(zip(order, starts, strict=True)):
        found[i] = max(low, min(start, max(low, most))) + gap * rank
    return found


def swarm(places: Sequence[float], size: float, most: int) -> list[int]:
    """Return a level (0, 1, −1, …) for each place so that dots of a level do not overlap; at most `most` levels."""
    levels = [0] * len(places)
    ends: list[float] = []
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        free = next((level for level, end in enumerate(ends) if places[i] - end >= size), len(ends))
        level = free if free < most else min(range(most), key=lambda each: ends[each])
        if level == len(ends):
            ends.append(places[i])
        ends[level] = places[i]
        levels[i] = level
    return [(level + 1) // 2 * (1 if level % 2 else -1) for level in levels]


def chart(key: str, width: float, height: float, title: str, summary: str, content: str, kind: str = "") -> str:
    """Return a whole chart, with its title and its description for screen readers."""
    labels = element("title", str(escape(one_line(title))) or "Figure", id=f"{key}-t")
    labels += element("desc", str(escape(one_line(summary))) or "–", id=f"{key}-d")
    return element(
        "svg", labels + content, class_=f"chart {kind}".strip(), viewBox=f"0 0 {width:.0f} {height:.0f}", role="img",
        aria_labelledby=f"{key}-t", aria_describedby=f"{key}-d", style=f"max-width:{width * 1.15:.0f}px",
    )  # fmt: skip
