"""Images of every mode become RGB; what is no image says where it lies."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import png, write_tar
from PIL import Image

from mmrep.data.decode import decode_image, read_image
from mmrep.data.shards import DataError, build_index

GRADIENT = np.stack([np.tile(np.arange(0, 240, 10), (16, 1))] * 3, axis=2).astype(np.uint8) + np.array(
    [0, 5, 10], dtype=np.uint8
)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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
    data = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(pixels(data), np.broadcast_to([254, 0, 0], (8, 8, 3)), atol=3)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(ramp), "PNG"))[:, :, 1].ravel(), np.arange(256))


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
        (b"", r"not an image \(JPEG, PNG, WEBP"),
        (b"<html>404</html>", r"not an image \(JPEG, PNG, WEBP"),
        (png((9, 9, 9), (64, 64))[:-30], "can't decode image: .*truncated"),
        (encode(Image.effect_noise((64, 64), 50), "JPEG")[:-500], "can't decode image: .*truncated"),
        (png((9, 9, 9), (80, 80)), r"80 × 80 pixels, more than data\.max_pixels 5000"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, data: bytes, reason: str) -> None:
    index = build_index(write_tar(tmp_path / "a.tar", [("good", {"jpg": png((1, 1, 1))}), ("k", {"jpg": data})]))
    assert read_image(index, 0, 5000).shape == (3, 16, 16)
    with pytest.raises(DataError, match=rf"a\.tar: sample 'k', member 'jpg': {reason}") as error:
        read_image(index, 1, 5000)
    assert "\n" not in str(error.value) and "0x" not in str(error.value)
