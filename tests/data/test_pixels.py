"""Pictures of every mode are the same pixels for the loader and `preprocess`; thin ones cost no more than others."""

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrep.data.decode import decode_image
from mmrep.data.transforms import resize_center, view
from mmrep.evaluation.embedding.embed import Centre
from mmrep.pixels import Fit, Preprocess, centre, cover, is_thin, resized_part, rgb

UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
FILES = {
    "16-bit grey": encode(Image.fromarray(RAMP), "PNG"),
    "16-bit TIFF": encode(Image.fromarray(RAMP), "TIFF"),
    "big-endian TIFF": encode(Image.frombytes("I;16B", (32, 32), RAMP.astype(">u2").tobytes()), "TIFF"),
    "32-bit TIFF of 8 bits": encode(Image.fromarray((RAMP >> 8).astype(np.int32)), "TIFF"),
    "32-bit TIFF of 16 bits": encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "alpha": encode(Image.fromarray(noise(40, 50, 4), "RGBA"), "PNG"),
    "grey and alpha": encode(Image.fromarray(noise(40, 50, 4), "RGBA").convert("LA"), "PNG"),
    "palette": encode(Image.fromarray(noise(40, 50)).quantize(7), "PNG"),
    "transparent palette": encode(Image.fromarray(noise(40, 50)).quantize(7), "PNG", transparency=b"\0\x80\xff"),
    "one bit": encode(Image.fromarray(noise(40, 50)).convert("1"), "PNG"),
    "CMYK": encode(Image.fromarray(noise(40, 50)).convert("CMYK"), "JPEG"),
    "JPEG": encode(Image.fromarray(noise(40, 50)), "JPEG"),
    "thin": encode(Image.fromarray(noise(2, 900)), "PNG"),
}


@pytest.mark.parametrize("name", FILES)
def test_one_file_has_the_same_pixels_everywhere(name: str) -> None:
    data = FILES[name]
    picture = Image.open(io.BytesIO(data))
    decoded = decode_image(data)
    np.testing.assert_array_equal(rgb(picture), decoded.permute(1, 2, 0).numpy())
    prepared = Preprocess(Fit(24, 24), *UNCHANGED)(picture) * 255
    assert torch.equal(prepared.round().to(torch.uint8), Centre(24, 24)(decoded, 0))


@pytest.mark.parametrize("name", [name for name in FILES if "bit" in name and "one" not in name])
def test_all_bits_are_scaled_to_8(name: str) -> None:
    """Neither black nor white."""
    np.testing.assert_array_equal(decode_image(FILES[name])[1].numpy(), RAMP >> 8)


@pytest.mark.parametrize(("mode", "value"), [("F", 100), ("I", 65_536), ("I", -1)])
def test_pixels_without_a_range_are_refused(mode: str, value: int) -> None:
    picture = Image.new(mode, (4, 4), value)
    for read in (lambda: Preprocess(Fit(4, 4), *UNCHANGED)(picture), lambda: decode_image(encode(picture, "TIFF"))):
        with pytest.raises(ValueError, match="no agreed range; store 8 or 16 bits"):
            read()


@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 50), (61, 33), (5, 9), (33, 200)])
def test_preprocess_is_open_clips(height: int, width: int) -> None:
    from open_clip.transform import image_transform

    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    picture = Image.fromarray(noise(height, width))
    theirs = image_transform(24, is_train=False, mean=mean, std=std)(picture)
    assert torch.equal(Preprocess(Fit(24, 24), mean, std)(picture), theirs)


THIN = [(2, 400), (400, 2), (1, 300), (3, 501), (900, 31), (333, 7), (250, 5001), (24, 3000)]


@pytest.mark.parametrize(("height", "width"), THIN)
@pytest.mark.parametrize("size", [(24, 24), (24, 37)])
def test_thin_pictures_have_the_pixels_of_the_whole(height: int, width: int, size: tuple[int, int]) -> None:
    pixels = noise(height, width)
    whole = cover(height, width, size)
    part = centre(whole, size)
    top, left, rows, columns = part
    for resample in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR):
        resized = np.array(Image.fromarray(pixels).resize((whole[1], whole[0]), resample))
        expected = resized[top : top + rows, left : left + columns]
        ours = resized_part(pixels, whole, part, resample)
        assert ours.shape == (*size, 3)
        assert np.abs(ours.astype(int) - expected).max() <= 1
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if is_thin((height, width), whole, part):
        assert torch.equal(resize_center(image, size), Centre(*size)(image, 0))


def test_every_part_of_a_thin_picture_can_be_made() -> None:
    """At the ends too, where the filter meets the picture's edge."""
    pixels = noise(3, 200)
    resized = np.array(Image.fromarray(pixels).resize((1600, 24), Image.Resampling.BICUBIC))
    for left in (0, 1, 777, 1575, 1576):
        ours = resized_part(pixels, (24, 1600), (0, left, 24, 24))
        assert np.abs(ours.astype(int) - resized[:, left : left + 24]).max() <= 1


@pytest.mark.parametrize("shape", [(2, 60_000), (60_000, 2)])
def test_thin_pictures_take_little_memory(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, this one would be 672,000 × 224 million pixels; Pillow's memory is not traced, but what it makes is."""
    made: list[int] = []
    resize = Image.Image.resize

    def noted(self: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return resize(self, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", noted)
    picture = Image.new("RGB", shape[::-1], (1, 2, 3))
    data = encode(picture, "PNG")
    image = decode_image(data)
    tracemalloc.start()
    try:
        assert Preprocess(Fit(224, 224), *UNCHANGED)(picture).shape == (3, 224, 224)
        for resized in (resize_center(image, (224, 224)), Centre(224, 224)(image, 0)):
            assert (resized.permute(1, 2, 0) == torch.tensor([1, 2, 3])).all()
        assert view(data, "resize", 1.0, (224, 224), np.zeros(40), True, dct_scaling=True).shape == (3, 224, 224)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert set(made) <= {224 * 224, 224 * 2, 224 * 8}
