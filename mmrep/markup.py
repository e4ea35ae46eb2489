"""Text and tables for terminals and Markdown. Text that others wrote (class names, configs) is made safe."""

import re
import unicodedata
from collections.abc import Sequence
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


_ASCII = str.maketrans(
    {"×": "x", "–": "-", "−": "-", "→": "->", "…": "...", "±": "+/-", "≥": ">=", "≤": "<=", "•": "*"}
)


def plain_ascii(text: str) -> str:
    """Return the text for a terminal that shows ASCII only; characters without a likeness become question marks."""
    return text.translate(_ASCII).encode("ascii", "replace").decode()


_LEAST = 12


def align(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of equal columns. The first row is the head; numbers are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numeric = [all(_is_number(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def shortened(rows: Sequence[Sequence[str]], width: int, columns: Sequence[str]) -> list[list[str]]:
    """Return rows with cells of some columns shortened so that `align` makes lines of at most `width` characters.

    Args:
        rows: the cells; the first row is the head.
        width: characters of a line.
        columns: heads of the columns whose cells may be cut in their middle, the widest first, to 12 characters.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    places = [rows[0].index(column) for column in columns]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0:
        widest = max(places, key=lambda place: widths[place])
        if widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
        excess -= 1
    return [[_cut(cell, widths[i]) if i in places else cell for i, cell in enumerate(row)] for row in rows]


def _cut(cell: str, width: int) -> str:
    """Return the start and the end of a cell around an ellipsis, since names differ at either end."""
    if len(cell) <= width:
        return cell
    head = (width - 1) // 2
    return f"{cell[:head]}…{cell[len(cell) - (width - 1 - head) :]}"


def _is_number(cell: str) -> bool:
    return (
        not cell
        or cell in "–"
        or cell.lstrip("+-−<").replace(",", "").replace(".", "", 1).replace("±", "").replace(" ", "").isdigit()
    )


def markdown_table(rows: Sequence[Sequence[str]], code: Sequence[int] = ()) -> str:
    """Return rows of cells as a Markdown table. The first row is the head.

    Args:
        rows: the cells.
        code: numbers of the columns whose comma-separated words are set as code.
    """
    lines: list[str] = []
    for row in rows:
        cells = [
            ", ".join(map(markdown_code, filter(None, cell.split(", "))))
            if i in code and lines
            else markdown_cell(cell)
            for i, cell in enumerate(row)
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
