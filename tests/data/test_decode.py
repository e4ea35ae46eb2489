"""Images of every mode become RGB; what is no image says where it lies."""

import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import png, write_tar
from PIL import Image

from mmrep.data.decode import decode_image, image_header, image_notes, read_image
from mmrep.data.indexing import build_index
from mmrep.data.tar import DataError

GRADIENT = np.stack([np.tile(np.arange(0, 240, 10), (16, 1))] * 3, axis=2).astype(np.uint8) + np.array(
    [0, 5, 10], dtype=np.uint8
)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours, as in photos."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
def test_rgb_is_exact(kind: str, options: dict[str, Any]) -> None:
    image = Image.fromarray(GRADIENT)
    np.testing.assert_array_equal(pixels(encode(image, kind, **options)), GRADIENT)


def test_jpeg_is_near() -> None:
    np.testing.assert_allclose(pixels(encode(Image.fromarray(GRADIENT), "JPEG", quality=95)), GRADIENT, atol=12)


def test_grey_and_palette() -> None:
    grey = Image.fromarray(GRADIENT[:, :, 0])
    np.testing.assert_array_equal(pixels(encode(grey, "PNG")), np.repeat(GRADIENT[:, :, :1], 3, axis=2))
    palette = Image.fromarray(GRADIENT).quantize(24)
    np.testing.assert_array_equal(pixels(encode(palette, "PNG")), np.array(palette.convert("RGB")))
    bilevel = Image.new("1", (4, 4), 1)
    assert (pixels(encode(bilevel, "PNG")) == 255).all()


def test_transparent_palette_keeps_its_colours_without_a_warning() -> None:
    palette = Image.new("RGB", (4, 4), (204, 0, 51)).convert("P")
    assert (pixels(encode(palette, "PNG", transparency=bytes(256))) == np.array(palette.convert("RGB"))).all()


def test_alpha_is_dropped() -> None:
    image = Image.fromarray(GRADIENT).convert("RGBA")
    image.putalpha(3)
    np.testing.assert_array_equal(pixels(encode(image, "PNG")), GRADIENT)


def test_cmyk_jpeg() -> None:
    """With inverted inks, as Adobe's programs and Pillow write them."""
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    data = encode(inks, "JPEG", quality=100)
    np.testing.assert_allclose(pixels(data), np.broadcast_to([254, 0, 0], (8, 8, 3)), atol=3)
    several = encode(photo(9, 9).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(pixels(several), np.asarray(Image.open(io.BytesIO(several)).convert("RGB")))
    np.testing.assert_allclose(pixels(encode(inks, "TIFF")), np.broadcast_to([254, 0, 0], (8, 8, 3)), atol=3)


JPEGS: dict[str, dict[str, Any]] = {
    "444": {"subsampling": 0},
    "422": {"subsampling": 1},
    "420": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "rgb": {"keep_rgb": True},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("size", [(61, 97), (1, 1), (16, 17), (8, 500)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_are_pillows(size: tuple[int, int], options: dict[str, Any], mode: str) -> None:
    data = encode(photo(*size).convert(mode), "JPEG", **options)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    np.testing.assert_array_equal(pixels(data + b"whatever follows"), pixels(data))


@pytest.mark.parametrize(
    ("least", "shape"),
    [
        ((102, 1), (201, 301)),
        ((1, 152), (201, 301)),
        ((101, 151), (101, 151)),
        ((52, 1), (101, 151)),
        ((51, 76), (51, 76)),
        ((26, 38), (26, 38)),
        ((1, 1), (26, 38)),
    ],
)
def test_dct_scaling_stays_large_enough(least: tuple[int, int], shape: tuple[int, int]) -> None:
    picture = photo(201, 301)
    image = decode_image(encode(picture, "JPEG", quality=95), at_least=least)
    assert tuple(image.shape[1:]) == shape
    small = np.asarray(picture.resize(shape[::-1], Image.Resampling.BOX)).astype(int)
    # 201 and 301 are not multiples of the factor: at 1/8 the small image covers 7 rows and 3 columns more.
    assert np.abs(image.permute(1, 2, 0).numpy() - small).mean() < 8
    assert decode_image(encode(picture, "PNG"), at_least=least).shape == (3, 201, 301)


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_truncated_jpegs_are_refused_wherever_they_end(options: dict[str, Any]) -> None:
    data = encode(photo(60, 90), "JPEG", **options)
    for length in (*range(3, len(data) - 2, 31), len(data) - 3):
        for least in (None, (1, 1)):
            with pytest.raises(ValueError, match=r"can't decode image|not an image"):
                decode_image(data[:length], at_least=least)
    try:  # all pixels, and no end marker: Pillow may find that it has enough
        np.testing.assert_array_equal(pixels(data[:-2]), pixels(data))
    except ValueError as error:
        assert "truncated" in str(error)


def test_jpegs_with_lost_pixels_are_refused() -> None:
    """With an end marker behind the cut, Pillow returns grey where the pixels were."""
    data = encode(photo(60, 90), "JPEG")
    cut = data[: len(data) * 2 // 3] + b"\xff\xd9"
    Image.open(io.BytesIO(cut)).load()
    with pytest.raises(ValueError, match="can't decode image: truncated or damaged: .*premature end of data segment"):
        decode_image(cut)


def test_bytes_between_jpeg_markers_do_no_harm() -> None:
    data = encode(photo(60, 90), "JPEG")
    padded = data[:-2] + bytes(4) + data[-2:]
    np.testing.assert_array_equal(pixels(padded), pixels(data))
    (note,) = image_notes(padded)
    assert note.startswith("libjpeg says: ") and "extraneous bytes" in note


@pytest.mark.parametrize("cut", [1, 4, 11, 12, 13, 16, 17, 40])
def test_truncated_pngs_are_refused(cut: int) -> None:
    data = encode(photo(60, 90), "PNG")
    with pytest.raises(ValueError, match="can't decode image: truncated"):
        decode_image(data[:-cut])
    np.testing.assert_array_equal(pixels(data + bytes(cut)), pixels(data))


def test_png_checksums() -> None:
    """Of pixels; a wrong one of a text does no harm."""
    data = encode(photo(60, 90), "PNG")
    flipped = bytearray(data)
    flipped[data.index(b"IDAT") + 4 + int.from_bytes(data[data.index(b"IDAT") - 4 :][:4], "big")] ^= 1
    with pytest.raises(ValueError, match="damaged: wrong checksum of the PNG's chunk 'IDAT'"):
        decode_image(bytes(flipped))
    text = bytearray(chunk(b"tEXt", b"a\0b"))
    text[-1] ^= 1
    np.testing.assert_array_equal(pixels(data[:-12] + bytes(text) + data[-12:]), pixels(data))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(ramp), "PNG"))[:, :, 1].ravel(), np.arange(256))


def test_16_bit_colours_are_scaled() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 257 * v, 65535, 256) for v in range(256))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 256, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    expected = np.stack([np.arange(256), np.full(256, 255), np.full(256, 1)], axis=1)
    np.testing.assert_array_equal(pixels(data)[:, 0], expected)
    assert image_notes(data) == ["16-bit, scaled to 8"]


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="float pixels"):
        decode_image(encode(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_orientation_is_left_alone() -> None:
    """As open_clip and CLIP_benchmark do."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encode(photo(20, 30), kind, exif=exif)
        assert decode_image(data).shape == (3, 20, 30)
        assert image_notes(data) == ["EXIF orientation 6, not applied"]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == [255, 0, 0]).all()
    assert image_notes(data) == ["animated (3 frames, first used)"]


TWO = {"save_all": True, "append_images": [photo(9, 9)]}


@pytest.mark.parametrize(
    ("image", "kind", "options", "notes"),
    [
        (photo(9, 9), "JPEG", {}, []),
        (photo(9, 9), "PNG", {}, []),
        (photo(9, 9).quantize(8), "PNG", {}, []),
        (photo(9, 9).convert("CMYK"), "JPEG", {}, ["CMYK, converted to RGB without a colour profile"]),
        (photo(9, 9).quantize(8), "PNG", {"transparency": 0}, ["palette with transparency, which is dropped"]),
        (photo(9, 9).convert("RGBA"), "PNG", {}, ["transparency, which is dropped"]),
        (photo(9, 9), "TIFF", TWO, ["several pictures (2 frames, first used)"]),
        (Image.fromarray(np.zeros((9, 9), dtype=np.uint16)), "TIFF", {}, ["16-bit, scaled to 8"]),
    ],
)  # fmt: skip
def test_notes(image: Image.Image, kind: str, options: dict[str, Any], notes: list[str]) -> None:
    data = encode(image, kind, **options)
    assert image_notes(data) == notes
    assert decode_image(data).shape == (3, 9, 9)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(photo(7, 9), "JPEG"), (7, 9, "JPEG", "YCbCr")),
        (encode(photo(7, 9).convert("CMYK"), "JPEG"), (7, 9, "JPEG", "CMYK")),
        (encode(photo(7, 9).convert("L"), "PNG"), (7, 9, "PNG", "L")),
        (encode(photo(7, 9), "WEBP"), (7, 9, "WEBP", "RGB")),
        (encode(photo(7, 9), "WEBP", lossless=True), (7, 9, "WEBP", "RGB")),
        (encode(photo(7, 9), "BMP"), (7, 9, "BMP", "RGB")),
    ],
)
def test_header(data: bytes, expected: tuple[int, int, str, str]) -> None:
    assert tuple(image_header(data)) == expected
    assert image_header(data, 63)
    with pytest.raises(ValueError, match="9 × 7 pixels, more than"):
        image_header(data, 62)


def bombs() -> dict[str, bytes]:
    """Small files that declare 60000 × 60000 pixels (a WebP: 16383 × 16383)."""
    jpeg = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    gif = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    frame = gif.index(b",", 13 + 3 * 2 ** (1 + (gif[10] & 7)))
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 60000, 60000)
    lossless = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 16382 | 16382 << 14)
    lossy = bytearray(encode(Image.new("RGB", (8, 8)), "WEBP"))
    lossy[26:30] = struct.pack("<HH", 16383, 16383)
    canvas = bytearray(encode(Image.new("RGBA", (8, 8)), "WEBP", exif=b"Exif\0\0"))
    canvas[24:30] = (16382).to_bytes(3, "little") * 2
    tiff = encode(Image.new("L", (60000, 1)), "TIFF")
    tall = tiff.replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 60000))
    return {
        "jpeg": bytes(jpeg),
        "png": b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""),
        "gif screen": bytes(gif[:6]) + struct.pack("<HH", 60000, 60000) + bytes(gif[10:]),
        "gif frame": bytes(gif),
        "webp lossless": bytes(lossless),
        "webp lossy": bytes(lossy),
        "webp canvas": bytes(canvas),
        "tiff": tall,
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_by_the_header(name: str) -> None:
    data = bombs()[name]
    ours = r"pixels, more than data\.max_pixels 89478485"
    reason = (
        f"{ours}|exceeds limit" if name in ("gif frame", "tiff") else ours
    )  # the latter: Pillow's, as it opens them
    tracemalloc.start()
    try:
        for read in (decode_image, image_header, image_notes):
            with pytest.raises(ValueError, match=reason):
                read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_too_many_pixels() -> None:
    data = png((1, 2, 3), (20, 10))
    assert decode_image(data, max_pixels=200).shape == (3, 10, 20)
    with pytest.raises(ValueError, match=r"20 × 10 pixels, more than data\.max_pixels 199"):
        decode_image(data, max_pixels=199)


def test_formats_that_start_programs_are_refused() -> None:
    """Pillow hands PostScript to Ghostscript."""
    data = encode(Image.new("RGB", (4, 4)), "EPS")
    Image.open(io.BytesIO(data))
    with pytest.raises(ValueError, match=r"^not an image \(JPEG, PNG"):
        decode_image(data)


def test_damage_is_a_value_error_whatever_it_hits() -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        good = encode(Image.fromarray(GRADIENT), kind)
        for _ in range(100):
            bad = bytearray(good[: rng.integers(1, len(good))])
            bad[rng.integers(min(len(bad), 60))] ^= 1 << rng.integers(8)
            try:
                decode_image(bytes(bad), max_pixels=10**6)
            except ValueError:
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty: 0 bytes$"),
        (b"<html>404</html>", r"not an image \(JPEG, PNG, WEBP"),
        (png((9, 9, 9), (64, 64))[:-30], "can't decode image: .*truncated"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:-500], "can't decode image: .*truncated"),
        (encode(photo(64, 64), "JPEG")[:300], "can't decode image: Truncated"),
        (png((9, 9, 9), (80, 80)), r"80 × 80 pixels, more than data\.max_pixels 5000"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", [("good", {"jpg": png((1, 1, 1))}), ("k", {"jpg": data})]))
    assert read_image(index, 0, 5000).shape == (3, 16, 16)
    with pytest.raises(DataError, match=rf"a\.tar: sample 'k', member 'jpg': {reason}") as error:
        read_image(index, 1, 5000)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)
