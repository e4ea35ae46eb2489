"""Decode images of samples to uint8 tensors."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmrep.data.jpeg import JPEG_START, ImageHeader, decode_jpeg, jpeg_complaint, jpeg_header, scans
from mmrep.data.png import PNG_START, check_rows, checked_png
from mmrep.data.shards import ShardIndex, image_extension, read_member
from mmrep.data.tar import DataError
from mmrep.pixels import rgb

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs."""
_MAX_SCANNED = 16 * MAX_PIXELS
"""Most pixels times scans of a progressive JPEG; they take some seconds."""
_PIXELS_PER_BYTE, _SMALL = 2_000, 1 << 22
"""A file with more pixels a byte, and more pixels in all than _SMALL, is a decompression bomb. 34 bytes of WebP can
claim all pixels that are allowed, and cost 20 bytes of memory for each. PNG and JPEG of one colour have 350 and 170."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Recognised by content, whatever the extension. Pillow reads more formats, and starts Ghostscript for one of them."""
_DECODER_ERRORS = (
    *(OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 258
"""EXIF and TIFF tags."""


def image_header(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageHeader:
    """Return the header of an image file without decoding pixels.

    Raises:
        ValueError: empty, not an image, or more than `max_pixels` pixels.
    """
    header = jpeg_header(data)
    if header:
        _check_cost(data, header.width, header.height, max_pixels)
        return header
    if data.startswith(PNG_START):
        data = checked_png(data)
    with _opened(data, max_pixels) as image:
        return ImageHeader(image.height, image.width, image.format or "", image.mode)


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, at_least: tuple[int, int] | None = None
) -> UInt8[Tensor, "3 height width"]:
    """Return the RGB pixels of an image file as stored (no EXIF rotation), in channels-last layout.

    Of several frames the first is used, alpha is dropped, and 16 bits are scaled to 8.

    Args:
        data: the file.
        max_pixels: larger images are refused by their header, before memory is taken for them.
        at_least: least rows and columns of the result. A JPEG is then decoded at the smallest of 1/8, 1/4, 1/2 of its
            size that suffices (DCT scaling; the pixels differ from those of a resized full-size image).

    Raises:
        ValueError: empty, not an image, truncated or damaged, or more than `max_pixels` pixels.
    """
    header = jpeg_header(data)
    if header:
        _check_cost(data, header.width, header.height, max_pixels)
        try:
            pixels = decode_jpeg(data, header, at_least)
        except ValueError as error:
            raise ValueError(f"can't decode image: truncated or damaged: {error}") from error
        if pixels is not None:
            return torch.from_numpy(pixels).permute(2, 0, 1)
    if data.startswith(PNG_START):
        data = checked_png(data)
    with _opened(data, max_pixels) as image:
        if image.format == "PNG":
            check_rows(data, image)
        return torch.from_numpy(rgb(image)).permute(2, 0, 1)


@contextmanager
def _opened(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image with Pillow; turn errors of Pillow, here or in the block, into a ValueError of one line."""
    if not data:
        raise ValueError("empty: 0 bytes")
    try:
        declared = _declared_size(data)
        if declared:
            _check_cost(data, *declared, max_pixels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_cost(data, *image.size, max_pixels)
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image ({', '.join(FORMATS)})") from error
    except _DECODER_ERRORS as error:
        raise ValueError(f"can't decode image: {' '.join(str(error).split())}") from error


def _check_cost(data: bytes, width: int, height: int, max_pixels: int) -> None:
    """Raise ValueError for an image whose pixels would take more memory or time than those of real images."""
    pixels = width * height
    if pixels > max_pixels:
        raise ValueError(f"{width} × {height} pixels, more than data.max_pixels {max_pixels}")
    if pixels > max(_PIXELS_PER_BYTE * len(data), _SMALL):
        raise ValueError(f"{width} × {height} pixels in {len(data)} bytes: a decompression bomb")
    if data.startswith(JPEG_START) and pixels * (count := scans(data)) > _MAX_SCANNED:
        raise ValueError(f"{count} scans of {width} × {height} pixels: a decompression bomb")


def _declared_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height from the headers of JPEG, PNG, GIF and WebP files.

    Pillow warns of large images before we can refuse them, and takes memory for a WebP's canvas when it opens it.
    """
    header = jpeg_header(data)
    if header:
        return header.width, header.height
    if data.startswith(PNG_START):
        return struct.unpack_from(">II", data, 16)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return struct.unpack_from("<HH", data, 6)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = data[12:16]
        if kind == b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        if kind == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def image_notes(data: bytes, max_pixels: int = MAX_PIXELS) -> list[str]:
    """Return what is unusual about an image that `decode_image` reads, and how it is read.

    Raises:
        ValueError: not an image, or more than `max_pixels` pixels.
    """
    try:
        notes = _notes(data, max_pixels)
    except ValueError:
        bare = checked_png(data) if data.startswith(PNG_START) else data
        if bare is data:
            raise
        notes = [*_notes(bare, max_pixels), "texts or a colour profile that Pillow refuses, not read"]
    header = jpeg_header(data)
    complaint = header and jpeg_complaint(data, header)
    if complaint:
        notes.append(f"libjpeg says: {complaint}")
    return notes


def _notes(data: bytes, max_pixels: int) -> list[str]:
    notes = []
    with _opened(data, max_pixels) as image:
        if image.mode == "CMYK":
            notes.append("CMYK, converted to RGB without a colour profile")
        if _bits(image, data) == 16:
            notes.append("16-bit, scaled to 8")
        if image.mode == "I":
            notes.append("32-bit integers, taken for 8 bits if none is above 255, else for 16")
        if image.mode == "P" and "transparency" in image.info:
            notes.append("palette with transparency, which is dropped")
        elif image.has_transparency_data:
            notes.append("transparency, which is dropped")
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            kind = "animated" if image.format in ("GIF", "PNG", "WEBP") else "several pictures"
            notes.append(f"{kind} ({frames} frames, first used)")
        orientation = image.getexif().get(_ORIENTATION, 1)
        if orientation != 1:
            notes.append(f"EXIF orientation {orientation}, not applied")
    return notes


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits of a channel as stored."""
    if image.format == "PNG":
        return data[24]
    tags = getattr(image, "tag_v2", None)
    return max(tags.get(_BITS_PER_SAMPLE, (8,))) if image.format == "TIFF" and tags else 8


def read_image(index: ShardIndex, sample: int, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """Return the decoded image of a sample; a DataError names shard, key, member and reason."""
    extension = image_extension(index, sample)
    data = read_member(index, sample, extension)
    try:
        return decode_image(data, max_pixels)
    except ValueError as error:
        raise DataError(f"{index.sample(sample)}, member {extension!r}: {error}") from error
