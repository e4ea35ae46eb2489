"""Tables for the terminal; the standard library only."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of equal columns; the first row is the head; numbers stand to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    numeric = [all(_is_number(row[i]) for row in rows[1:]) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return not cell or cell in "–" or cell.lstrip("+-").replace(".", "", 1).replace("±", "").replace(" ", "").isdigit()
