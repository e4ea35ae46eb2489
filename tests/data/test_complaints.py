"""Every complaint of libjpeg is damage unless it is known to be harmless; PNG streams that end early; bombs."""

import io
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mmrep.data.decode import decode_image, image_header, image_notes
from mmrep.data.jpeg import scans


def photo(mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).convert(mode)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    photo(mode).save(out, "JPEG", **options)
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return decode_image(data).permute(1, 2, 0).numpy()


def complaint(data: bytes, colours: str = "RGB") -> str:
    with pytest.raises(ValueError) as error:
        simplejpeg.decode_jpeg(data, colours)
    return str(error.value)


def with_segment(data: bytes, marker: int, content: bytes, in_place_of: int = 0) -> bytes:
    """A file with one more segment behind its first marker, or in the place of its first segment."""
    rest = data[4 + struct.unpack(">H", data[4:6])[0] :] if in_place_of else data[2:]
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + rest


def patched(data: bytes, start: bytes, offset: int, value: int) -> bytes:
    place = data.index(start) + offset
    return data[:place] + bytes([value]) + data[place + 1 :]


PLAIN, CMYK, PROGRESSIVE = jpeg(), jpeg("CMYK"), jpeg(progressive=True)
RESTARTS = jpeg(restart_marker_blocks=4)
MARKERS = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7]", RESTARTS)]
SCANS = [found.start() for found in re.finditer(rb"\xff\xda", PROGRESSIVE)]
ADOBE = struct.pack(">5sHHHB", b"Adobe", 100, 0, 0, 7)
HARMLESS = {
    "zeros at the end": (PLAIN[:-2] + bytes(9) + PLAIN[-2:], "extraneous bytes before marker 0xd9"),
    "zeros before restarts": (
        RESTARTS[: MARKERS[0]] + bytes(7) + RESTARTS[MARKERS[0] : MARKERS[1]] + bytes(9) + RESTARTS[MARKERS[1] :],
        "extraneous bytes before marker 0xd0",
    ),
    "zeros between segments": (PLAIN.replace(b"\xff\xc0", bytes(3) + b"\xff\xc0"), "extraneous bytes before marker"),
    "metadata of another length": (
        with_segment(PLAIN, 0xE1, b"Exif\0\0abc").replace(b"abc", b"abcdef"), "extraneous bytes before marker 0xe0"
    ),
    "profile": (with_segment(PLAIN, 0xE2, b"ICC_PROFILE\0\0\0abc"), "bad ICC marker"),
    "revision": (patched(PLAIN, b"JFIF\0", 5, 9), "unknown JFIF revision number"),
    "colour transform": (with_segment(PLAIN, 0xEE, ADOBE, in_place_of=0xE0), "Unknown Adobe color transform"),
    "scan of a baseline file": (patched(PLAIN, b"\xff\xda", 12, 0), "Invalid SOS parameters"),
}  # fmt: skip
DAMAGE = {
    "no end marker": (PLAIN[:-2], "Premature end of JPEG file"),
    "lost segments": (RESTARTS[: MARKERS[3]] + RESTARTS[MARKERS[6] :], "found marker 0x.. instead of RST"),
    "lost to the end": (RESTARTS[: MARKERS[3]] + RESTARTS[-2:], "found marker 0xd9 instead of RST"),
    "cut": (PLAIN[: len(PLAIN) * 2 // 3] + PLAIN[-2:], "premature end of data segment"),
    "leftover pixels": (PLAIN[:-2] + PLAIN[-40:], "extraneous bytes before marker 0xd9"),
    "behind what is harmless": (
        patched(RESTARTS[: MARKERS[3]] + RESTARTS[MARKERS[6] :], b"JFIF\0", 5, 9), "unknown JFIF revision"
    ),
    "bytes between tables": (PLAIN.replace(b"\xff\xc0", b"abc\xff\xc0"), "extraneous bytes before marker 0xc0"),
    "no end of a progressive file": (PROGRESSIVE[: SCANS[-1]], "Premature end of JPEG file"),
    "a scan twice": (PROGRESSIVE[:-2] + PROGRESSIVE[SCANS[-1] :], "Inconsistent progression"),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_complaints(name: str) -> None:
    data, said = HARMLESS[name]
    assert re.search(said, complaint(data))
    np.testing.assert_array_equal(pixels(data), pixels(PLAIN if "restarts" not in name else RESTARTS))
    assert any("libjpeg says" in note for note in image_notes(data))


@pytest.mark.parametrize("name", DAMAGE)
def test_other_complaints_are_damage(name: str) -> None:
    data, said = DAMAGE[name]
    assert re.search(said, complaint(data))
    for least in (None, (8, 8)):
        with pytest.raises(ValueError, match="can't decode image: truncated or damaged"):
            decode_image(data, at_least=least)


def test_cmyk_is_held_to_the_same() -> None:
    """Pillow decodes these, and keeps complaints to itself."""
    cut = CMYK[: len(CMYK) // 2] + CMYK[-2:]
    assert "premature end" in complaint(cut, "CMYK")
    with pytest.raises(ValueError, match="premature end of data segment"):
        decode_image(cut)
    np.testing.assert_array_equal(pixels(CMYK[:-2] + bytes(9) + CMYK[-2:]), pixels(CMYK))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: np.ndarray, kept: int, *, bits: int = 8, colour: int = 2, interlaced: bool = False) -> bytes:
    """A PNG file with the stream of `kept` rows of bytes only."""
    header = struct.pack(
        ">IIBBBBB", rows.shape[1] // 3 if colour == 2 else 8 * rows.shape[1], len(rows), bits, colour, 0, 0, interlaced
    )
    stream = b"".join(b"\0" + row.tobytes() for row in rows[:kept])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(stream)) + chunk(b"IEND", b"")


def test_png_stream_that_ends_early() -> None:
    noise = np.random.default_rng(0).integers(1, 256, (30, 60), dtype=np.uint8)
    assert decode_image(png(noise, 30)).shape == (3, 30, 20)
    for kept in (10, 29):
        Image.open(io.BytesIO(png(noise, kept))).load()  # without a word
        with pytest.raises(ValueError, match="truncated: its stream holds"):
            decode_image(png(noise, kept))


def test_black_last_rows_are_no_truncation() -> None:
    black = np.zeros((30, 60), dtype=np.uint8)
    assert not decode_image(png(black, 30)).any()
    with pytest.raises(ValueError, match=r"its stream holds 1,769 of 1,830 bytes"):
        decode_image(png(black, 29))
    bits = np.zeros((9, 2), dtype=np.uint8)
    assert not decode_image(png(bits, 9, bits=1, colour=0)).any()
    with pytest.raises(ValueError, match="its stream holds"):
        decode_image(png(bits, 8, bits=1, colour=0))


def test_interlaced_png() -> None:
    """8 × 8 grey pixels in seven passes: 1 + 1 + 2 + 4 + 8 + 16 + 32 of them, in 15 rows."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    sizes = ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8))
    stream = b"".join((b"\0" + bytes([9]) * columns) * rows for rows, columns in sizes)
    assert len(stream) == 64 + 15
    for kept in (len(stream), len(stream) - 9):
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(stream[:kept]))
        data += chunk(b"IEND", b"")
        if kept == len(stream):
            assert (decode_image(data) == 9).all()
        else:
            with pytest.raises(ValueError, match="its stream holds 70 of 79 bytes"):
                decode_image(data)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_long_texts_and_profiles_of_pngs(kind: bytes) -> None:
    """Pillow refuses more than a megabyte of them."""
    long = b"x" * (2 << 20)
    packed = zlib.compress(long)
    content = {
        b"zTXt": b"a\0\0" + packed, b"iCCP": b"a\0\0" + packed, b"tEXt": b"a\0" + long * 40,
        b"iTXt": b"a\0\1\0\0\0" + packed,
    }[kind]  # fmt: skip
    noise = np.random.default_rng(0).integers(1, 256, (30, 60), dtype=np.uint8)
    plain = png(noise, 30)
    data = plain[:33] + chunk(kind, content) + plain[33:]
    if kind != b"tEXt":
        with pytest.raises(ValueError, match="too large"):
            Image.open(io.BytesIO(data)).load()
    np.testing.assert_array_equal(pixels(data), pixels(plain))
    assert image_header(data)[:2] == (30, 20)
    assert kind == b"tEXt" or "Pillow refuses" in image_notes(data)[0]


def test_files_that_cost_much_more_than_their_size_are_refused() -> None:
    blank = io.BytesIO()
    Image.new("RGB", (8, 8)).save(blank, "WEBP", lossless=True)
    webp = bytearray(blank.getvalue())
    webp[21:25] = struct.pack("<I", 9458 | 9458 << 14)
    out = io.BytesIO()
    Image.new("L", (3000, 3000), 7).save(out, "JPEG", progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xda", out.getvalue())]
    scan = out.getvalue()[starts[1] : starts[2]]
    many = out.getvalue()[:-2] + scan * 500 + b"\xff\xd9"
    for data, reason in ((bytes(webp), "9459 × 9459 pixels in "), (many, "scans of 3000 × 3000 pixels")):
        for read in (decode_image, image_header, image_notes):
            with pytest.raises(ValueError, match=f"{reason}.*a decompression bomb"):
                read(data)
    assert decode_image(out.getvalue()).shape == (3, 3000, 3000)


def test_metadata_does_not_count_as_scans() -> None:
    thumbnails = with_segment(PROGRESSIVE, 0xE1, b"\xff\xda" * 30000)
    assert scans(thumbnails) == len(SCANS)
    np.testing.assert_array_equal(pixels(thumbnails), pixels(PROGRESSIVE))
    assert scans(with_segment(PLAIN, 0xE1, b"\xff\xda" * 30000)) == 1
