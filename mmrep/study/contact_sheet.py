"""A contact sheet: samples that only one of two models answers right, in one picture."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from mmrep.markup import one_line

_GAP, _LINE, _TEXT, _TITLE = 6, 15, 12, 16
_WIDE = 1200
"""Pixels that tiles fill from left to right, about."""
_LINES = 6


class Tile(NamedTuple):
    """One sample.

    Attributes:
        pictures: pictures side by side, each with the text above it.
        lines: texts below them.
    """

    pictures: Sequence[tuple[str, Image.Image]]
    lines: Sequence[str]


def contact_sheet(parts: Sequence[tuple[str, Sequence[Tile]]], side: int, note: str = "") -> Image.Image:
    """Draw the tiles of each part below its title, from left to right, and a note below all.

    Args:
        parts: title and tiles of each part.
        side: pixels of the longer side of a picture.
        note: a text of one line.
    """
    every = [tile for _, tiles in parts for tile in tiles]
    width = max((len(tile.pictures) for tile in every), default=1) * (side + _GAP)
    columns = max(1, round(_WIDE / (width + 2 * _GAP)))
    most = max((len(_wrapped(tile, width)) for tile in every), default=0)
    height = _LINE + side + most * _LINE + 2 * _GAP
    rows = [max(1, -(-len(tiles) // columns)) if tiles else 0 for _, tiles in parts]
    title = 2 * _TITLE
    total = sum(title + each * height for each in rows) + _GAP + (title if note else 0)
    sheet = Image.new("RGB", (columns * (width + 2 * _GAP) + _GAP, total), "white")
    draw, top = ImageDraw.Draw(sheet), _GAP
    for (text, tiles), lines in zip(parts, rows, strict=True):
        draw.text((_GAP, top), one_line(text), "black", ImageFont.load_default(_TITLE))
        for number, tile in enumerate(tiles):
            row, column = divmod(number, columns)
            _draw(sheet, tile, _GAP + column * (width + 2 * _GAP), top + title + row * height, side, width)
        top += title + lines * height
    draw.text((_GAP, top), note, "dimgray", ImageFont.load_default(_TEXT))
    return sheet


def _wrapped(tile: Tile, width: int) -> list[str]:
    characters = max(12, width // 6)
    return [part for line in tile.lines for part in textwrap.wrap(one_line(line), characters)][:_LINES]


def _draw(sheet: Image.Image, tile: Tile, left: int, top: int, side: int, width: int) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    for number, (name, picture) in enumerate(tile.pictures):
        x = left + number * (side + _GAP)
        draw.text((x, top), _fitting(one_line(name), font, side), "dimgray", font)
        sheet.paste(picture, (x, top + _LINE + (side - picture.height) // 2))
    for number, line in enumerate(_wrapped(tile, width)):
        text = _fitting(line, font, width)
        draw.text((left, top + _LINE + side + number * _LINE), text, "black", font)


def _fitting(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont", width: int) -> str:
    """Return the text, cut with an ellipsis if it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
