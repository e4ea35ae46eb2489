"""Figures as typed data; how they are drawn is up to a renderer."""

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from mmrep.study.report.values import Interval, Seeds


class Axis(NamedTuple):
    """An axis of a figure. `share` axes hold shares and are labelled in percent."""

    title: str
    unit: str = ""
    share: bool = False
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForestRow:
    """A difference with its interval and the value of every seed, all as shares."""

    label: str
    arm: str
    mean: float
    interval: Interval | None
    seeds: Seeds
    margin: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Forest:
    """Differences below each other on one axis."""

    title: str
    summary: str
    rows: list[ForestRow]
    axis: Axis


@dataclass(frozen=True)
class Line:
    """A line of a chart: the mean, and thin lines of single seeds (or a band of least and greatest values)."""

    arm: str
    label: str
    points: list[tuple[float, float]]
    thin: list[list[tuple[float, float]]] = field(default_factory=list)
    band: list[tuple[float, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Lines:
    """A line chart. `span` is the range of y that it shares with others."""

    title: str
    summary: str
    x: Axis
    y: Axis
    lines: list[Line]
    marks: bool = False
    span: tuple[float, float] | None = None


class Point(NamedTuple):
    """A point of a scatter plot; `spread` is the standard deviation of y over seeds."""

    arm: str
    x: float
    y: float
    spread: float
    front: bool


@dataclass(frozen=True)
class Scatter:
    """A scatter plot with a Pareto front."""

    title: str
    summary: str
    x: Axis
    y: Axis
    points: list[Point]


@dataclass(frozen=True)
class Slopes:
    """Values of two arms joined seed by seed."""

    title: str
    summary: str
    a: str
    b: str
    values_a: Seeds
    values_b: Seeds
    y: Axis


class DotRow(NamedTuple):
    """Values of one arm, in the order of the marks' names."""

    arm: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Dots:
    """A dot plot: an arm in each row, several marks in a row."""

    title: str
    summary: str
    marks: tuple[str, ...]
    rows: list[DotRow]
    axis: Axis


Figure: TypeAlias = Forest | Lines | Scatter | Slopes | Dots
