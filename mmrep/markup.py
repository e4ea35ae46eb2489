"""Text that others wrote (class names, set names, configs), made safe for terminals and Markdown."""

import re
import unicodedata
from typing import Any


def printable(text: str) -> str:
    """Return the text with control characters spelled out, but for line feeds and tabs: no escape reaches a terminal.

    Marks that turn the direction of writing are spelled out too.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs") else ascii(char)[1:-1]
        for char in text
    )


def one_line(value: Any) -> str:
    """Return a value as text on one line, without control characters."""
    return printable(" ".join(str(value).split()))


def markdown_cell(value: Any) -> str:
    """Return a value as a table's cell: one line in which nothing is markup."""
    return re.sub(r"([\\`*<>|\[\]#&]|\b_|_\b)", r"\\\1", one_line(value))


def markdown_code(value: Any) -> str:
    """Return a value in code quotes, safe inside a table."""
    return "`" + one_line(value).replace("`", "'").replace("|", "\\|") + "`"
