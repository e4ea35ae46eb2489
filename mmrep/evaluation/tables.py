"""Tables for the terminal; the standard library only."""

from collections.abc import Sequence

_LEAST = 12


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


def shortened(rows: Sequence[Sequence[str]], width: int, columns: Sequence[str]) -> list[list[str]]:
    """Rows that `align` makes at most `width` wide, as far as shorter cells in some columns can do that.

    Args:
        rows: the first is the head.
        width: in characters.
        columns: heads of those that may be cut, in their middle: the widest first, down to 12 characters.
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
    return [
        [_cut(cell, widths[i]) if i in places else cell for i, cell in enumerate(row)] if row is not rows[0] else [*row]
        for row in rows
    ]


def _cut(cell: str, width: int) -> str:
    """Its start and end, about an ellipsis: names differ at either."""
    if len(cell) <= width:
        return cell
    head = (width - 1) // 2
    return f"{cell[:head]}…{cell[len(cell) - (width - 1 - head) :]}"


def _is_number(cell: str) -> bool:
    return not cell or cell in "–" or cell.lstrip("+-").replace(".", "", 1).replace("±", "").replace(" ", "").isdigit()
