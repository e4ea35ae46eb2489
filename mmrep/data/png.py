"""Checks of PNG files that Pillow does not make, and removal of parts that it refuses without need."""

import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Channels of each colour type."""
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row, first column, step of rows and step of columns for each pass of an interlaced file."""
_PIECE = 1 << 20


def checked_png(data: bytes) -> bytes:
    """Return a PNG file without texts and colour profile, which do not change its pixels.

    Pillow refuses files with long texts or profiles, even if the pixels are sound. Once it has all rows, it checks
    neither the last chunk nor checksums.

    Raises:
        ValueError: a chunk up to IEND is missing, or the checksum of a critical one is wrong.
    """
    view, dropped = memoryview(data), []
    for kind, start, end in _chunks(data):
        name = kind.decode("ascii", "replace")
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"can't decode image: damaged: wrong checksum of the PNG's chunk {name!r}")
        if kind in _TEXTS:
            dropped.append((start, end))
    if not dropped:
        return data
    starts, ends = zip(*dropped, strict=True)
    return b"".join(view[end:start] for end, start in zip((0, *ends), (*starts, len(data)), strict=True))


def check_rows(data: bytes, picture: Image.Image) -> None:
    """Raise ValueError unless the stream of a decoded PNG file holds all rows: Pillow leaves missing rows black.

    Inflating costs half as much as decoding. It is done only if the last row is black, or the file is interlaced.
    """
    width, height, interlaced = picture.width, picture.height, data[28]
    if not interlaced and np.asarray(picture.crop((0, height - 1, width, height))).any():
        return
    bits = data[24] * _CHANNELS[data[25]]
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    expected = 0
    for top, left, rows_step, columns_step in passes:
        rows, columns = -(-(height - top) // rows_step), -(-(width - left) // columns_step)
        expected += rows * (1 + -(-columns * bits // 8)) if rows > 0 and columns > 0 else 0
    found = _inflated(data, expected)
    if found < expected:
        raise ValueError(f"can't decode image: truncated: its stream holds {found:,} of {expected:,} bytes of pixels")


def _inflated(data: bytes, enough: int) -> int:
    """Return the number of bytes in the pixel stream of a file, counted up to `enough`."""
    inflate, found = zlib.decompressobj(), 0
    for kind, start, end in _chunks(data):
        rest = data[start + 8 : end - 4] if kind == b"IDAT" else b""
        while rest and found < enough and not inflate.eof:
            found += len(inflate.decompress(rest, _PIECE))
            rest = inflate.unconsumed_tail
    return found + (len(inflate.flush()) if not inflate.eof and found < enough else 0)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of every chunk up to IEND."""
    place, kind = len(PNG_START), b""
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ValueError("can't decode image: truncated: the PNG's last chunk, IEND, is missing")
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        kind = data[place + 4 : place + 8]
        if end > len(data):
            raise ValueError(
                f"can't decode image: truncated within the PNG's chunk {kind.decode('ascii', 'replace')!r}"
            )
        yield kind, place, end
        place = end
