"""The errors of a user's mistakes, and the checks that all configs share."""

import difflib
import sys
from collections.abc import Iterable


class MmrepError(ValueError):
    """An error for the user, in one line: what, where, what to do. Exit status 1, without a traceback."""


class ConfigError(MmrepError):
    """An error in what the user asked for: one line that names the field, the value and the fix. Exit status 2."""


LARGEST = 2**53
"""Whole numbers are at most this: larger ones are not exact as floats, and no run needs them."""
LONGEST_QUOTE = 80
"""Characters of a rejected value that a message repeats."""


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut to LONGEST_QUOTE characters."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…"


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def hint(value: object, choices: Iterable[str], most: int = 1) -> str:
    """Return `; did you mean 'NAME'?` with the choices nearest to `value`, or nothing where none is near.

    Args:
        value: what the user gave.
        choices: the valid names.
        most: number of names to suggest.
    """
    near = difflib.get_close_matches(str(value)[:LONGEST_QUOTE], list(choices), n=most)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def one_of(field: str, value: object, choices: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of `choices`; suggest the nearest."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{field}: unknown value {quoted(value)}{hint(value, choices)} (valid: {', '.join(choices)})")


def at_least(field: str, value: float | None, low: float) -> None:
    """Raise ConfigError unless `value` is None, or a finite number ≥ `low` (a whole one at most LARGEST)."""
    require(value is None or value >= low, f"{field}: expected a value ≥ {low:g}, got {quoted(value)}")
    _check_size(field, value)


def above(field: str, value: float | None, low: float) -> None:
    """Raise ConfigError unless `value` is None, or a finite number > `low` (a whole one at most LARGEST)."""
    require(value is None or value > low, f"{field}: expected a value > {low:g}, got {quoted(value)}")
    _check_size(field, value)


def _check_size(field: str, value: float | None) -> None:
    most = LARGEST if isinstance(value, int) else sys.float_info.max
    require(value is None or value <= most, f"{field}: expected a value up to {most:g}, got {quoted(value)}")


def within(field: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError unless `low` ≤ `value` ≤ `high`."""
    require(low <= value <= high, f"{field}: expected a value from {low:g} to {high:g}, got {quoted(value)}")
