"""The report as plain text: on a terminal of 80 columns, and as CSV."""

import csv
import io
import textwrap

from mmrep.markup import align, one_line, shortened
from mmrep.study.report.model import Bullets, Column, Report, Row, Table, shown
from mmrep.study.report.values import Cell, Interval, Seeds

WIDTH = 80
_SENTENCES = 6
_NAMES = ("text", "verdict")


def terminal_text(report: Report) -> str:
    """Return the report for a terminal: the answers, then the short tables and remarks."""
    parts = [_paragraph(answer.text) for answer in report.answers[:_SENTENCES]]
    left = len(report.answers) - _SENTENCES
    parts += (
        [_paragraph(f"{left} more contrasts are in report.html and report.md. All: {report.summary}.")]
        if left > 0
        else []
    )
    warnings = [badge for badge in report.badges if badge.state == "warn"]
    parts += [_paragraph(f"{badge.label}: {badge.text}", "! ") for badge in warnings]
    for block in report.short:
        if isinstance(block, Table):
            parts.append(f"\n{_paragraph(block.title)}\n{_table(block)}")
        elif isinstance(block, Bullets):
            parts += ["", *(_paragraph(item, "• ") for item in block.items)]
    return "\n".join(parts)


def _paragraph(text: str, mark: str = "") -> str:
    lines = textwrap.wrap(one_line(text), WIDTH - len(mark), break_on_hyphens=False)
    return "\n".join((mark if i == 0 else " " * len(mark)) + line for i, line in enumerate(lines))


def _table(table: Table) -> str:
    """Return a table that fits the terminal: columns of the greatest rank are left out, then names are cut."""
    columns = [column for column in table.columns if column.kind != "seeds"]
    while (rows := _rows(table, columns)) and _width(rows) > WIDTH and (greatest := max(c.rank for c in columns)) > 0:
        columns = [column for column in columns if column.rank < greatest]
    names = [column.heading for column in columns if column.kind in _NAMES]
    return align(shortened(rows, WIDTH, names))


def _rows(table: Table, columns: list[Column]) -> list[list[str]]:
    cells = [[one_line(shown(column, row.get(column.key))) for column in columns] for row in table.rows]
    return [[column.heading for column in columns], *cells]


def _width(rows: list[list[str]]) -> int:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


def csv_text(table: Table) -> str:
    """Return a table as CSV with all digits. Intervals take two columns, values of seeds a column for each seed."""
    seeds = sorted(
        {seed for row in table.rows for cell in row.values() if isinstance(cell, Seeds) for seed in cell.seeds}
    )
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow([name for column in table.columns for name in _heads(column, seeds)])
    for row in table.rows:
        writer.writerow([cell for column in table.columns for cell in _cells(column, row, seeds)])
    return output.getvalue()


def _heads(column: Column, seeds: list[int]) -> list[str]:
    if column.kind == "interval":
        return ["low", "high"]
    if column.kind == "seeds":
        return [f"seed {seed}" for seed in seeds]
    return [_literal(column.title)]


def _cells(column: Column, row: Row, seeds: list[int]) -> list[str]:
    value = row.get(column.key)
    if column.kind == "interval":
        return [repr(value.low), repr(value.high)] if isinstance(value, Interval) else ["", ""]
    if column.kind == "seeds":
        found = dict(zip(*value, strict=True)) if isinstance(value, Seeds) else {}
        return [repr(found[seed]) if seed in found else "" for seed in seeds]
    return [_cell(value)]


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    return _literal(value) if isinstance(value, str) else repr(value)


def _literal(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula."""
    text = one_line(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
