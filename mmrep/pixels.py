"""RGB pixels of Pillow pictures, and resizing, for the loader, evaluation and `preprocess`."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mmrep.config.model import Interpolation, ResizeMode

Box = tuple[int, int, int, int]
"""Top, left, height, width."""
MOST_DISCARDED = 16
"""An enlarged picture of at most this many times the pixels that are kept is resized whole and then cut."""
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_NO_RANGE = "{} pixels, which have no agreed range; store 8 or 16 bits"
_SUPPORT = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2}
"""Pixels on each side that Pillow's filters read; times the factor if a picture is made smaller."""


def rgb(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """Return a picture of any mode as RGB. Alpha is dropped, and 16 bits are scaled to 8.

    Integers of 32 bits count as 8 or as 16 bits, whichever their largest value fits into.

    Raises:
        ValueError: float pixels or larger integers, which have no agreed range, or a mode that can't become RGB.
    """
    if picture.mode.startswith("I"):
        # Pillow would clip these at 255 instead of scaling them.
        values = np.asarray(picture)
        deep = picture.mode != "I" or values.max(initial=0) > 255
        if picture.mode == "I" and not 0 <= values.min(initial=0) <= values.max(initial=0) < 65_536:
            raise ValueError(_NO_RANGE.format("32-bit integer"))
        grey = (values >> 8 if deep else values).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode == "F":
        raise ValueError(_NO_RANGE.format("float"))
    if picture.mode == "RGBa" or (picture.mode == "P" and "transparency" in picture.info):
        picture = picture.convert("RGBA")  # the same colours, without Pillow's warning
    return np.array(picture.convert("RGB"))


def cover(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns of the smallest picture of this aspect ratio that covers `size`.

    The longer side is rounded as in open_clip: down if `size` is square, else to the nearest whole number.
    """
    if size[0] != size[1]:
        return _scaled(height, width, min(height / size[0], width / size[1]))
    if width >= height:
        return size[0], size[0] * width // height
    return size[1] * height // width, size[1]


def _scaled(height: int, width: int, factor: float) -> tuple[int, int]:
    return max(1, round(height / factor)), max(1, round(width / factor))


def centre(whole: tuple[int, int], size: tuple[int, int]) -> Box:
    """Return the box of `size` in the middle of a picture of `whole` rows and columns."""
    top, left = (round((whole[i] - size[i]) / 2) for i in (0, 1))
    return top, left, *size


def is_thin(shape: tuple[int, int], whole: tuple[int, int], part: Box) -> bool:
    """Return whether a picture grows so much that only the part that is kept should be computed.

    A picture that is not thin becomes no larger than it was, or than MOST_DISCARDED times the part that is kept.

    Args:
        shape: rows and columns of the picture.
        whole: rows and columns after resizing.
        part: the box that is kept.
    """
    grows = whole[0] * whole[1] > shape[0] * shape[1]
    return grows and whole[0] * whole[1] > MOST_DISCARDED * part[2] * part[3]


def resized_part(
    pixels: UInt8[np.ndarray, "height width 3"],
    whole: tuple[int, int],
    part: Box,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Resize a picture to `whole` rows and columns with Pillow, and return a part of the result.

    Of a thin picture only the part is computed, so that memory and time do not depend on `whole`, which grows with the
    aspect ratio. Pillow holds the edges of a box in single precision, so that one value in 5,000 then differs by 1 from
    resizing the whole (and in black and white noise one in a million by 2). For all other pictures the part is exact.

    Args:
        pixels: the picture.
        whole: rows and columns of the whole resized picture.
        part: the box that is returned.
        resample: bicubic or bilinear.
    """
    height, width = pixels.shape[:2]
    top, left, rows, columns = part
    if (height, width) == whole:
        return pixels[top : top + rows, left : left + columns]
    if not is_thin((height, width), whole, part):
        resized = Image.fromarray(pixels).resize((whole[1], whole[0]), resample)
        return np.array(resized)[top : top + rows, left : left + columns]
    first, last, above, below = _window(height, whole[0], top, rows, _SUPPORT[resample])
    start, stop, before, behind = _window(width, whole[1], left, columns, _SUPPORT[resample])
    window = Image.fromarray(np.ascontiguousarray(pixels[first:last, start:stop]))
    # Columns first, as Pillow does for the whole picture. For the window alone it might choose the other order, which
    # clips other values.
    wide = window.resize((columns, last - first), resample, box=(before, 0, behind, last - first))
    return np.array(wide.resize((columns, rows), resample, box=(0, above, columns, below)))


def _window(side: int, whole: int, start: int, length: int, support: int) -> tuple[int, int, float, float]:
    """Return the first and last pixel that a resized stretch depends on, and its ends relative to the first pixel."""
    factor = side / whole
    begin, end = start * factor, (start + length) * factor
    reach = support * max(factor, 1.0) + 1
    first, last = max(0, math.floor(begin - reach)), min(side, math.ceil(end + reach))
    return first, last, begin - first, min(end - first, last - first)


class Fit(NamedTuple):
    """The resizing of a whole picture to a model's size, as in open_clip's evaluation transform.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        resize_mode: with `shortest` the picture just covers the size, and its centre is cut out; with `longest` it just
            fits in, and black borders fill the rest; with `squash` it is stretched to the size.
        interpolation: `bicubic` or `bilinear`.
    """

    rows: int
    columns: int
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns

    def pixels(self, picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "rows columns 3"]:
        """Return a picture at the model's size, with Pillow's arithmetic."""
        resample = _RESAMPLING[self.interpolation]
        height, width = picture.shape[:2]
        if self.resize_mode == "shortest":
            whole = cover(height, width, self.size)
            return resized_part(picture, whole, centre(whole, self.size), resample)
        if self.resize_mode == "squash":
            return resized_part(picture, self.size, (0, 0, *self.size), resample)
        rows, columns = _scaled(height, width, max(height / self.rows, width / self.columns))
        found = np.zeros((self.rows, self.columns, 3), np.uint8)
        top, left = (self.rows - rows) // 2, (self.columns - columns) // 2
        found[top : top + rows, left : left + columns] = resized_part(
            picture, (rows, columns), (0, 0, rows, columns), resample
        )
        return found


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform: a Pillow picture of any mode to a normalised float tensor (3, rows, columns).

    The picture is converted to RGB as in the loader, so that a file always has the same embedding.

    Attributes:
        fit: the resizing.
        mean: mean of each channel, where white is 1.
        std: standard deviation of each channel.
    """

    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> Float[Tensor, "3 rows columns"]:
        """Return the model's input.

        Raises:
            ValueError: as in `rgb`.
        """
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        pixels = torch.from_numpy(self.fit.pixels(rgb(picture)))
        return (pixels.permute(2, 0, 1).contiguous().float() / 255 - mean) / std
