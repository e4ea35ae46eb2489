"""Read JPEG files with libjpeg-turbo: their header, and their pixels at full or reduced size."""

import re
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

JPEG_START = b"\xff\xd8\xff"
"""The first bytes of every JPEG file."""
_COLOURS = ("YCbCr", "Gray", "RGB")
"""Colours that libjpeg-turbo converts to RGB as Pillow does. Adobe's inverted CMYK is left to Pillow."""
_ORDINARY_SCANS = 20
"""Encoders write 10 to 15 scans in a progressive file."""
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_PADDINGS = 64
"""Most paddings that are removed from one file; each costs another decoding."""
_SOF0, _SOF1, _SOF2, _SOS, _APP0, _ADOBE, _COMMENT = 0xC0, 0xC1, 0xC2, 0xDA, 0xE0, 0xEE, 0xFE


class ImageHeader(NamedTuple):
    """The header of an image file.

    Attributes:
        height: pixels as stored, without EXIF rotation.
        width: pixels as stored.
        format: JPEG, PNG, WEBP, GIF, BMP, TIFF, or MPO (a JPEG followed by further pictures).
        mode: Pillow's mode (RGB, P, I;16, …), or the colours of a JPEG (YCbCr, Gray, RGB, CMYK, YCCK).
    """

    height: int
    width: int
    format: str
    mode: str


def jpeg_header(data: bytes) -> ImageHeader | None:
    """Return the header of a file; None if libjpeg-turbo finds none that it can read."""
    if not data.startswith(JPEG_START):
        return None
    try:
        height, width, colours = simplejpeg.decode_jpeg_header(data, strict=False)[:3]
        return ImageHeader(height, width, "JPEG", colours)
    except (ValueError, KeyError):
        return None


def decode_jpeg(data: bytes, header: ImageHeader, at_least: tuple[int, int] | None = None) -> NDArray[np.uint8] | None:
    """Return the (height, width, 3) RGB pixels of a JPEG file: equal to Pillow's, in 3/4 of its time.

    CMYK files return None: Pillow decodes them.

    Args:
        data: the file.
        header: its header.
        at_least: least rows and columns of the result, see `reduction`; None: full size.

    Raises:
        ValueError: libjpeg-turbo complains of something that is not known to be harmless.
    """
    if header.mode not in _COLOURS:
        _sound(data, "CMYK")  # raises for damage, which Pillow does not report
        return None
    factor = reduction(header.height, header.width, at_least) if at_least else 1
    # simplejpeg chooses the smallest scale that is no smaller than this; without bounds, the full size.
    bounds = {"min_height": -(-header.height // factor), "min_width": -(-header.width // factor)} if factor > 1 else {}
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_factor=factor, **bounds)
    except ValueError:
        return simplejpeg.decode_jpeg(_sound(data, "RGB"), "RGB", min_factor=factor, **bounds)


def reduction(height: int, width: int, at_least: tuple[int, int]) -> int:
    """Return the largest of 8, 4, 2 by which the size can be divided without falling below `at_least`; else 1.

    libjpeg-turbo's other scales (3/8, 5/8, …) have no vectorised transform.
    """
    rows, columns = at_least
    return next((f for f in (8, 4, 2) if -(-height // f) >= rows and -(-width // f) >= columns), 1)


def jpeg_complaint(data: bytes, header: ImageHeader) -> str | None:
    """Return the first complaint of libjpeg-turbo while it decodes a file; None if there is none."""
    try:
        simplejpeg.decode_jpeg(data, "RGB" if header.mode in _COLOURS else "CMYK")
    except ValueError as error:
        return str(error)
    return None


def scans(data: bytes) -> int:
    """Return the number of scans of a file if it is unusual, else 1. Each scan costs time for all pixels."""
    if _is_one_scan(data):
        return 1  # counting takes 5% of the time of decoding
    count = data.count(b"\xff\xda")
    if count <= _ORDINARY_SCANS:
        return 1
    header = _plain_header(data, "RGB")
    # In compressed data, 0xff is followed by 0 or a restart marker; in metadata, by anything.
    return count if header is None else 1 + data.count(b"\xff\xda", header[1])


def _is_one_scan(data: bytes) -> bool:
    """Return whether the first scan of a file holds all components, so that decoding ends with it."""
    place, components = 2, -1
    while place + 10 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == _SOS:
            return data[place + 4] == components
        if marker in (_SOF0, _SOF1):
            components = data[place + 9]
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def _sound(data: bytes, colours: str) -> bytes:
    """Return a file that libjpeg-turbo decodes to the same pixels without complaint.

    A complaint is harmless if its cause can be removed from the file and no other complaint follows: libjpeg-turbo
    names only the first, and goes on with grey or shifted pixels after most. Everything else is damage.

    Raises:
        ValueError: the complaint, if it is not known to be harmless.
    """
    try:
        simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        plain, complaint = _plain_header(data, colours), error
    else:
        return data
    if plain is None:
        raise complaint
    data = plain[0] + data[plain[1] :]
    for _ in range(_PADDINGS):
        try:
            simplejpeg.decode_jpeg(data, colours)
        except ValueError as error:
            mended = _without_padding(data, str(error))
            if mended is None:
                raise
            data = mended
        else:
            return data
    raise complaint


def _without_padding(data: bytes, complaint: str) -> bytes | None:
    """Return a file without the padding that a complaint is about: zeros before a marker. None: it may be pixels."""
    extraneous = _EXTRANEOUS.search(complaint)
    if extraneous is None:
        return None
    marker = bytes([0xFF, int(extraneous[2], 16)])
    padded = bytes(int(extraneous[1])) + marker
    return data.replace(padded, marker, 1) if padded in data else None


def _plain_header(data: bytes, colours: str) -> tuple[bytes, int] | None:
    """Return a file's header without the parts that libjpeg-turbo complains of but ignores, and the start of its scan.

    Such parts are metadata (colour profiles cut or out of order), bytes after metadata whose length is wrong, zeros
    between segments, an unknown revision of JFIF, an unknown colour transform of Adobe (read as YCbCr or YCCK), and the
    parameters of progressive files in other files. None: bytes between other segments, or no header.
    """
    kept, place, metadata, sequential = [data[:2]], 2, True, True
    while found := _MARKER.search(data, place):
        marker, start = found[1][0], found.end()
        if not metadata and data[place : found.start()].strip(b"\0"):
            return None
        end = start + int.from_bytes(data[start : start + 2], "big")
        segment = bytearray(data[start:end])
        if end > len(data) or len(segment) < 3:
            return None
        metadata = _APP0 <= marker < _APP0 + 16 or marker == _COMMENT
        if marker == _APP0 and segment[2:7] == b"JFIF\0" and len(segment) > 8:
            segment[7] = 1
        elif marker == _ADOBE and segment[2:7] == b"Adobe" and len(segment) > 13:
            segment[13] = segment[13] if segment[13] <= 2 else 2 if colours == "CMYK" else 1
        elif marker == _SOS and sequential:
            segment[-3:] = bytes((0, 63, 0))
        elif metadata:
            place = end
            continue
        sequential = sequential and marker != _SOF2
        kept.append(bytes([0xFF, marker]) + segment)
        if marker == _SOS:
            return b"".join(kept), end
        place = end
    return None
