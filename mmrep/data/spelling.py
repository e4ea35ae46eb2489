"""How paths, patterns and texts are spelled: braces expanded, `..` dropped, characters that show nothing."""

import os

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error

from mmrep.config.checks import ConfigError


def expand_braces(pattern: str, shown: str) -> list[str]:
    """The names that a pattern with braces stands for, in their order.

    Args:
        pattern: `{0..9}`, `{a,b}` and the like.
        shown: what messages call it.

    Raises:
        ConfigError: unbalanced braces.
    """
    try:
        return list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{shown}: unbalanced braces") from error


def absolute(path: str) -> str:
    """An absolute path without `.` and `..`; links stay, since what a user named is what messages and catalogs say."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute keeps `..`, Path.resolve follows links


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: it is empty, or all blanks, zeros and other control characters."""
    return not any(character.isprintable() and not character.isspace() for character in text)
