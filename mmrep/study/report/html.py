"""The report as one HTML file that needs no network and no script to be read."""

import base64
import hashlib
import io
import re
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mmrep.markup import one_line, printable
from mmrep.study.report.charts import draw
from mmrep.study.report.figures import Figure
from mmrep.study.report.forest import strip
from mmrep.study.report.model import Block, Column, Look, Report, Sheet, Table, shown
from mmrep.study.report.svg import element, marker, padded
from mmrep.study.report.values import Cell, Interval, Seeds

_FEW_ANSWERS = 4
_LARGEST_SHEET = 1_000_000
_LONG_NAME = 18


def html_text(report: Report, sheets: dict[str, str] | None = None) -> str:
    """Return the report as a page.

    Args:
        report: the report.
        sheets: data-URIs of picture files by name; see `embedded`.
    """
    page = _environment()
    numbers = count()
    script = page.get_template("page.js").render()
    return page.get_template("page.html").render(
        report=report,
        sheets=sheets or {},
        style=Markup(page.get_template("page.css").render()),  # noqa: S704  # our own file
        script=Markup(script),  # noqa: S704  # our own file
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        few=_FEW_ANSWERS,
        long_name=_LONG_NAME,
        kind=_kind,
        cell=lambda table, column, row: _cell(report, table, column, row.get(column.key)),
        sort_value=_sort_value,
        swatch=lambda arm: _swatch(report.looks.get(arm)),
        figure=lambda each, wide: _figure(f"f{next(numbers)}", each, report, wide),
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader("mmrep.study.report", "page")
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"line": one_line, "printable": printable}
    return page


def _kind(block: Block | Figure) -> str:
    return type(block).__name__.lower()


def _figure(key: str, figure: Figure, report: Report, wide: bool) -> Markup:
    return Markup(draw(key, figure, report.looks, wide))  # noqa: S704  # charts escape what they are given


def _cell(report: Report, table: Table, column: Column, value: Cell) -> Markup:
    """Return the content of a cell; values of seeds are dots on one scale, and text for screen readers."""
    if isinstance(value, Seeds):
        same = [row for row in table.rows if row.get("metric") == _metric(table, value)]
        every = [v for row in same for cell in row.values() if isinstance(cell, Seeds) for v in cell.values]
        arm = next((str(row.get("pool")) for row in same if row.get(column.key) is value), "")
        drawn = strip(value, *padded(every), report.looks.get(arm, Look(0, 0)))
        return Markup(f'{drawn}<span class="sr">{escape(shown(column, value))}</span>')  # noqa: S704  # both are escaped
    text = one_line(shown(column, value))
    if column.kind == "verdict" and value:
        stem = re.split(r"[,(]", text)[0].strip().replace(" ", "-")
        return Markup('<span class="v {}">{}</span>').format(stem, text)
    if len(text) <= _LONG_NAME or column.kind != "text":
        return escape(text)
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(text))))  # noqa: S704  # a long name may be broken


def _metric(table: Table, value: Seeds) -> Cell:
    """Return the metric of the row that has this cell: strips share a scale within a metric."""
    return next((row.get("metric") for row in table.rows if any(cell is value for cell in row.values())), None)


def _sort_value(value: Cell) -> str:
    """Return what a column is sorted by: an interval by its middle, seeds by their mean."""
    if isinstance(value, Interval):
        return repr((value.low + value.high) / 2)
    if isinstance(value, Seeds):
        return repr(sum(value.values) / max(len(value.values), 1))
    return "" if value is None else str(value) if isinstance(value, str) else repr(value)


def _swatch(look: Look | None) -> Markup:
    """Return the mark of an arm as it is in figures."""
    if look is None:
        return Markup("")
    mark = marker(look.shape, 7, 7, 4.6, class_="mean")
    return Markup(element("svg", mark, viewBox="0 0 14 14", aria_hidden="true", class_=f"swatch a{look.colour}"))  # noqa: S704  # numbers


def embedded(report: Report, folder: Path) -> dict[str, str]:
    """Return data-URIs of the picture files that the report shows: large ones smaller, unreadable ones left out."""
    found = {}
    blocks: list[Any] = [block for section in report.sections for block in section.blocks]
    for block in blocks:
        if isinstance(block, Sheet) and re.fullmatch(r"[\w.-]+\.png", block.file):
            try:
                data = (folder / block.file).read_bytes()
                kind = "png"
                if len(data) > _LARGEST_SHEET:
                    data, kind = _smaller(data), "jpeg"
            except (OSError, ValueError):
                continue
            found[block.file] = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return found


def _smaller(data: bytes) -> bytes:
    """Return a picture as a JPEG of at most 1800 pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
        picture.thumbnail((1800, 1800))
        output = io.BytesIO()
        picture.save(output, "JPEG", quality=80)
    return output.getvalue()
