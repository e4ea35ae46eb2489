"""Values of the report, and how they are shown. They stay numbers until a renderer shows them."""

from typing import NamedTuple, TypeAlias

MISSING = "–"


class Interval(NamedTuple):
    """An interval, in the unit of its column."""

    low: float
    high: float


class Seeds(NamedTuple):
    """Values of one arm, seed by seed."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]


Cell: TypeAlias = str | int | float | Interval | Seeds | None


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; what rounds to zero has none."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def spanned(low: float, high: float, digits: int) -> str:
    """Return the text of an interval of shares, in percentage points."""
    return f"[{signed(100 * low, digits)}, {signed(100 * high, digits)}]"


def chance(p: float) -> str:
    """Return the text of a p-value."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"
