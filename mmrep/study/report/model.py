"""The report of a study as typed data, made once from results.json. Renderers read it, and never each other's text.

Values stay numbers until a renderer shows them with `shown`, so that all renderers agree on every digit.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from mmrep.study.report.figures import Figure
from mmrep.study.report.values import MISSING, Cell, Interval, Seeds, chance, signed, spanned

Kind = Literal["text", "count", "number", "share", "points", "p", "interval", "seeds", "verdict"]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: key of its cells in a row, and its name in CSV.
        title: heading, without the unit.
        kind: how values are shown. `share`, `points`, `interval` and `seeds` hold shares that are shown as percentages
            or percentage points.
        unit: unit of the values as shown.
        term: key of its definition in the glossary, or an empty text.
        digits: decimals.
        rank: columns of the greatest rank are left out first where a terminal is too narrow.
    """

    key: str
    title: str
    kind: Kind = "text"
    unit: str = ""
    term: str = ""
    digits: int = 2
    rank: int = 0

    @property
    def heading(self) -> str:
        """The title with the unit."""
        return f"{self.title} {self.unit}".strip()

    @property
    def numeric(self) -> bool:
        """Whether the cells are numbers."""
        return self.kind in ("count", "number", "share", "points", "p")


Row: TypeAlias = dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: heading.
        columns: the columns.
        rows: cells by the columns' keys.
        note: explanation below it.
        short: whether a terminal shows it too.
        arm: the column that holds labels of arms, or an empty text.
        filtered: whether the page offers to filter its rows.
        folded: whether the page shows it on demand, because figures show the same.
    """

    title: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""
    short: bool = False
    arm: str = "pool"
    filtered: bool = False
    folded: bool = False


@dataclass(frozen=True)
class Panels:
    """Figures next to each other, with one caption."""

    title: str
    caption: str
    figures: list[Figure]


class Shot(NamedTuple):
    """An image under a label. `right` marks the right answer; `text` is what the arm answers."""

    label: str
    image: str
    alt: str
    text: str = ""
    right: bool | None = None


class Scene(NamedTuple):
    """An image or a query, and for each arm its images. Every row has a label, images and a remark."""

    caption: str
    image: Shot | None
    rows: list[tuple[str, list[Shot], str]]


@dataclass(frozen=True)
class Gallery:
    """Pictures that two arms answer differently."""

    title: str
    caption: str
    scenes: list[Scene]


@dataclass(frozen=True)
class Sheet:
    """A picture file in the folder of the study."""

    title: str
    caption: str
    file: str


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    title: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Bullets:
    """Sentences, each an item."""

    items: list[str]


Block: TypeAlias = Table | Panels | Gallery | Sheet | Code | Bullets


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    key: str
    title: str
    text: list[str]
    blocks: list[Block]


class Answer(NamedTuple):
    """A sentence on the first screen, in three parts. `arm` is the one that it is about, or an empty text."""

    start: str
    verdict: str = ""
    end: str = ""
    arm: str = ""

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.start}{self.verdict}{self.end}"


class Badge(NamedTuple):
    """A fact about the study that a reader must not miss. `state` is `good`, `plain` or `warn`."""

    label: str
    state: Literal["good", "plain", "warn"]
    text: str


class Look(NamedTuple):
    """Colour and shape of an arm in all figures; colour 0 is the baseline's grey."""

    colour: int
    shape: int


@dataclass(frozen=True)
class Report:
    """The whole report.

    Attributes:
        title: name of the study.
        subtitle: what was compared, in one line.
        answers: sentences on the registered contrasts.
        summary: how many contrasts have which verdict, where there are many.
        badges: facts that a reader must not miss.
        sections: the parts of the report.
        looks: colour and shape of every arm.
        data: the table of results.csv.
        short: what a terminal shows below the answers.
        terms: the glossary: title and definition by key.
    """

    title: str
    subtitle: str
    answers: list[Answer]
    summary: str
    badges: list[Badge]
    sections: list[Section]
    looks: dict[str, Look]
    data: Table
    short: list[Block]
    terms: dict[str, tuple[str, str]]


def shown(column: Column, value: Cell) -> str:
    """Return a cell as text."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        return spanned(value.low, value.high, column.digits)
    if isinstance(value, Seeds):
        return " ".join(f"{100 * each:.{column.digits}f}" for each in value.values)
    if column.kind == "count":
        return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}"
    if column.kind == "share":
        return f"{100 * value:.{column.digits}f}"
    if column.kind == "points":
        return signed(100 * value, column.digits)
    if column.kind == "p":
        return chance(float(value))
    return f"{value:.{column.digits}f}".replace("-", "−")
