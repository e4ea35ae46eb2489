"""Patch weights as pictures: heat maps over the image, and sheets of them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmrep.config.checks import require

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_NEGATIVE, _NEUTRAL, _POSITIVE = (33, 82, 190), (232, 232, 232), (190, 20, 30)
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
_OPACITY, _FULL_OPACITY = 0.35, 0.8
"""Of the colour over the grey image: where the weight is zero, and where it is at the limit."""
_SCALE_WIDTH = 330


def colours(values: Float[Tensor, "rows columns"], limit: float) -> UInt8[np.ndarray, "rows columns 3"]:
    """Blue for −limit, light grey for 0, red for limit, linear between; past the limit the colour stays."""
    share = _share(values, limit)[..., None]
    end = np.where(share < 0, np.array(_NEGATIVE), np.array(_POSITIVE))
    return np.rint(np.array(_NEUTRAL) + abs(share) * (end - np.array(_NEUTRAL))).astype(np.uint8)


def _share(values: Tensor, limit: float) -> NDArray[np.float64]:
    return np.clip(values.double().numpy() / (limit or 1.0), -1, 1)


def heat_map_picture(
    image: UInt8[Tensor, "3 height width"],
    weights: Float[Tensor, "rows columns"],
    limit: float | None = None,
    side: int = 168,
) -> Image.Image:
    """Weights as colours over a grey copy of the image: red adds, blue takes away, pale does neither.

    Args:
        image: pixels.
        weights: of the patches, which are drawn as the rectangles they are, not smoothed.
        limit: the weight with the strongest colour; None: the largest one here. Give one limit to pictures that are
            to be compared.
        side: width in pixels.
    """
    limit = float(weights.abs().max()) if limit is None else limit
    size = (side, max(1, side * image.shape[1] // image.shape[2]))
    grey = np.asarray(original_picture(image, side).convert("L").convert("RGB"), dtype=np.float64)
    opacity = _OPACITY + (_FULL_OPACITY - _OPACITY) * abs(_share(weights, limit))
    layer = np.dstack([colours(weights, limit), np.rint(255 * opacity).astype(np.uint8)])
    colour = np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.NEAREST), dtype=np.float64)
    alpha = colour[..., 3:] / 255
    return Image.fromarray(np.rint(grey * (1 - alpha) + colour[..., :3] * alpha).astype(np.uint8))


def original_picture(image: UInt8[Tensor, "3 height width"], side: int = 168) -> Image.Image:
    """The image itself, `side` pixels wide."""
    size = (side, max(1, side * image.shape[1] // image.shape[2]))
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).resize(size, Image.Resampling.BICUBIC)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], titles: Sequence[str] = (), limit: float | None = None
) -> Image.Image:
    """Rows of pictures on white, each behind its label.

    Args:
        rows: label and pictures of each row.
        titles: over the columns; none, or as many as the longest row has pictures.
        limit: where the pictures share one, it is written below with the colours' scale.

    Raises:
        ConfigError: no pictures, or a wrong number of titles.
    """
    columns = max((len(pictures) for _, pictures in rows), default=0)
    require(columns > 0, "contact sheet: no pictures were given")
    require(len(titles) in (0, columns), f"contact sheet: expected {columns} titles or none, got {len(titles)}")
    font, gap = ImageFont.load_default(size=14), 8
    side = max(picture.width for _, pictures in rows for picture in pictures)
    heights = [max((picture.height for picture in pictures), default=0) for _, pictures in rows]
    left = gap + max(round(font.getlength(label)) for label, _ in rows) + gap
    top = gap + (18 + gap if titles else 0)
    scale = 28 if limit is not None else 0
    width = max(left + columns * (side + gap), left + _SCALE_WIDTH if scale else 0)
    sheet = Image.new("RGB", (width, top + sum(height + gap for height in heights) + scale), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((left + column * (side + gap) + side // 2, gap + 9), _fit(title, side, font), _INK, font, "mm")
    for (label, pictures), height in zip(rows, heights, strict=True):
        draw.text((gap, top + height // 2), label, _INK, font, "lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left + column * (side + gap), top))
        top += height + gap
    if limit is not None:
        _draw_scale(sheet, (left, top), limit, font)
    return sheet


def _draw_scale(sheet: Image.Image, place: tuple[int, int], limit: float, font: Font) -> None:
    """A bar of the colours from −limit to limit, with its numbers."""
    bar = Image.fromarray(colours(torch.linspace(-1, 1, 160)[None], 1.0)).resize((160, 14))
    draw, (left, top) = ImageDraw.Draw(sheet), place
    before, after = f"{-limit:.2g}", f"{limit:.2g}  (weight)"
    shift = round(font.getlength(before)) + 6
    draw.text((left, top + 7), before, _INK, font, "lm")
    sheet.paste(bar, (left + shift, top))
    draw.text((left + shift + 166, top + 7), after, _INK, font, "lm")


def _fit(text: str, width: int, font: Font) -> str:
    """The text, its end replaced by dots where it is too wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
