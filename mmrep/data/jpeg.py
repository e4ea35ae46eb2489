"""JPEG files by libjpeg-turbo: their header, and their pixels at full or reduced size."""

from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

JPEG_START = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""
_COLOURS = ("YCbCr", "Gray", "RGB")
"""Those that libjpeg-turbo turns into RGB as Pillow does; Adobe's inverted CMYK is a matter for Pillow."""
_LOST_PIXELS = ("premature end of data segment", "bad Huffman code")
"""libjpeg goes on with grey after these, and so does Pillow, silently."""


class JpegHeader(NamedTuple):
    """What a JPEG file says of itself.

    Attributes:
        height: in pixels.
        width: in pixels.
        colours: YCbCr, Gray, RGB, CMYK or YCCK.
    """

    height: int
    width: int
    colours: str


def jpeg_header(data: bytes) -> JpegHeader | None:
    """The header of a file; None where libjpeg-turbo finds none that it knows."""
    if not data.startswith(JPEG_START):
        return None
    try:
        return JpegHeader(*simplejpeg.decode_jpeg_header(data, strict=False)[:3])
    except (ValueError, KeyError):
        return None


def decode_jpeg(data: bytes, header: JpegHeader, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8] | None:
    """RGB pixels of a JPEG file, (height, width, 3): Pillow's, bit for bit, in 3/4 of its time.

    Returns None for what Pillow has to decide: CMYK, and files that libjpeg-turbo complains of, since it complains
    of harmless bytes between the markers as well.

    Args:
        data: the file.
        header: of the file.
        at_least: rows and columns that the result must not fall below, see `reduction`; None: full size.

    Raises:
        ValueError: part of the pixels is lost.
    """
    if header.colours not in _COLOURS:
        return None
    factor = reduction(header.height, header.width, at_least) if at_least else 1
    # simplejpeg takes the smallest scale that is no smaller than this; without bounds, the full size.
    bounds = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)} if factor > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_factor=factor, **bounds)
    except ValueError as error:
        if any(words in str(error) for words in _LOST_PIXELS):
            raise
        return None


def reduction(height: int, width: int, at_least: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 by which height and width can be divided without falling below `at_least`; else 1.

    libjpeg-turbo's other scales (3/8, 5/8, …) have no vectorised transform.
    """
    rows, columns = at_least
    return next((f for f in (8, 4, 2) if -(-height // f) >= rows and -(-width // f) >= columns), 1)


def jpeg_complaint(data: bytes, header: JpegHeader) -> str | None:
    """What libjpeg-turbo has to say against a file while it decodes it; None: nothing."""
    try:
        simplejpeg.decode_jpeg(data, "RGB" if header.colours in _COLOURS else "CMYK")
    except ValueError as error:
        return str(error)
    return None
