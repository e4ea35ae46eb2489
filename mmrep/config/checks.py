"""The error that a user's mistake raises, and the few checks that all config files share."""

import difflib
import sys
from collections.abc import Iterable


class MmrepError(ValueError):
    """Something the user has to know, in one line: what, where, what to do. Exit status 1, without a traceback."""


class ConfigError(MmrepError):
    """A mistake in what the user asked for: one line that names the field, the value and the fix. Exit status 2."""


LARGEST = 2**53
"""Whole numbers are at most this: larger ones are not exact as floats, and no run needs them."""
LONGEST_QUOTE = 80
"""Characters of a rejected value that a message repeats."""


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut to LONGEST_QUOTE characters."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…"


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def one_of(field: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of `choices`; suggests the nearest."""
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value)[:LONGEST_QUOTE], choices, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{field}: unknown value {quoted(value)}{hint} (valid: {', '.join(choices)})")


def at_least(field: str, value: float | None, low: float) -> None:
    """Raises ConfigError unless `value` is None, or a finite number ≥ `low` (a whole one at most LARGEST)."""
    require(value is None or value >= low, f"{field}: expected a value ≥ {low:g}, got {quoted(value)}")
    _check_size(field, value)


def above(field: str, value: float | None, low: float) -> None:
    """Raises ConfigError unless `value` is None, or a finite number > `low` (a whole one at most LARGEST)."""
    require(value is None or value > low, f"{field}: expected a value > {low:g}, got {quoted(value)}")
    _check_size(field, value)


def _check_size(field: str, value: float | None) -> None:
    most = LARGEST if isinstance(value, int) else sys.float_info.max
    require(value is None or value <= most, f"{field}: expected a value up to {most:g}, got {quoted(value)}")


def within(field: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError unless `low` ≤ `value` ≤ `high`."""
    require(low <= value <= high, f"{field}: expected a value from {low:g} to {high:g}, got {quoted(value)}")
