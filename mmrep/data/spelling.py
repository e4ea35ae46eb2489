"""How paths, patterns and texts are spelled: braces expanded, `..` dropped, characters that show nothing."""

import os
import re
from itertools import islice

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error

from mmrep.config.checks import ConfigError, require

_MOST_NAMES = 2_000_000
_RANGE = re.compile(r"\{(-?[0-9]{1,4000})\.\.(-?[0-9]{1,4000})")


def expand_braces(pattern: str, shown: str) -> list[str]:
    """The names that a pattern with braces stands for, in their order.

    Args:
        pattern: `{0..9}`, `{a,b}` and the like.
        shown: what messages call it.

    Raises:
        ConfigError: unbalanced braces; more names than any set has.
    """
    # Ranges are looked at first: the library makes a list of each.
    wide = any(len(end) > 12 or abs(int(end) - int(start)) > _MOST_NAMES for start, end in _RANGE.findall(pattern))
    try:
        names = [] if wide else list(islice(braceexpand(pattern), _MOST_NAMES + 1))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{shown}: unbalanced braces") from error
    require(not wide and len(names) <= _MOST_NAMES, f"{shown}: stands for more than {_MOST_NAMES:,} names")
    return names


def absolute(path: str) -> str:
    """An absolute path without `.` and `..`; links stay, since what a user named is what messages and catalogs say."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute keeps `..`, Path.resolve follows links


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: it is empty, or all blanks, zeros and other control characters."""
    return not any(character.isprintable() and not character.isspace() for character in text)
