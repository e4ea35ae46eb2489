"""Crops and resizes: bounds, laws, and agreement with Pillow, torchvision and open_clip."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mmrep.data import transforms
from mmrep.data.decode import decode_image
from mmrep.data.draws import Purpose, uniforms
from mmrep.data.transforms import (
    CROP_DRAWS,
    crop_resize,
    kept_patches,
    random_crop_box,
    resize_center,
    view,
    view_of_decoded,
)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with edges: noise of several scales, thresholded in places."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 8, 25):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 3
    total[height // 4 : height // 2, width // 3 : width // 2] = 250
    return Image.fromarray(total.astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (3, 2), (100, 100), (480, 640), (30, 2000)])
@pytest.mark.parametrize("min_scale", [0.01, 0.5, 1.0])
def test_boxes_lie_within_the_image(height: int, width: int, min_scale: float) -> None:
    for draws in (
        *uniforms(0, Purpose.CROP, 0, 200, CROP_DRAWS),
        np.zeros(CROP_DRAWS),
        np.full(CROP_DRAWS, 1 - 2**-53),
    ):
        top, left, h, w = random_crop_box(height, width, min_scale, draws)
        assert top >= 0 and left >= 0 and h >= 1 and w >= 1
        assert top + h <= height and left + w <= width


@pytest.mark.parametrize(
    ("height", "width", "min_scale"), [(5, 6, 0.1), (200, 300, 0.1), (200, 300, 0.9), (100, 400, 0.5)]
)
def test_boxes_follow_torchvisions_law(height: int, width: int, min_scale: float) -> None:
    count = 4000
    ours = np.array(
        [random_crop_box(height, width, min_scale, d) for d in uniforms(0, Purpose.CROP, 0, count, CROP_DRAWS)]
    )
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    params = [RandomResizedCrop.get_params(image, [min_scale, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = np.array(params)

    def features(boxes: np.ndarray) -> np.ndarray:
        top, left, h, w = boxes.T
        area, ratio = h * w / (height * width), np.log(w / h)
        return np.stack([area, area**2, ratio, ratio**2, top / height, left / width, (top + h / 2) / height])

    a, b = features(ours), features(theirs)
    error = np.sqrt((a.var(1) + b.var(1)) / count)
    assert (np.abs(a.mean(1) - b.mean(1)) <= 4 * error + 1e-9).all()


def test_fallback_is_torchvisions() -> None:
    """No box of the whole area fits into these: the largest centred one within the ratios."""
    for height, width in ((100, 400), (400, 100), (7, 1000)):
        box = random_crop_box(height, width, 1.0, uniforms(0, Purpose.CROP, 0, 1, CROP_DRAWS)[0])
        params = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], [3 / 4, 4 / 3])
        assert box == tuple(params)


def test_whole_image_is_left_alone() -> None:
    image = tensor(picture(16, 16))
    assert torch.equal(crop_resize(image, (0, 0, 16, 16), (16, 16)), image)
    assert torch.equal(crop_resize(image, (0, 0, 16, 16), (16, 16), flip=True), image.flip(2))


@pytest.mark.parametrize("box", [(0, 0, 300, 400), (20, 35, 200, 150), (5, 5, 20, 30)])
def test_resize_is_pillows_bicubic(box: tuple[int, int, int, int]) -> None:
    image = picture(300, 400)
    top, left, h, w = box
    ours = crop_resize(tensor(image), box, (64, 64))
    theirs = image.crop((left, top, left + w, top + h)).resize((64, 64), Image.Resampling.BICUBIC)
    difference = (ours.float() - tensor(theirs).float()).abs()
    assert difference.mean() < 0.05 and difference.max() <= 2
    flipped = crop_resize(tensor(image), box, (64, 64), flip=True)
    assert torch.equal(flipped, ours.flip(2))


@pytest.mark.parametrize("size", [(64, 64), (2, 1), (1, 7), (17, 300)])
def test_layout_does_not_change_pixels(size: tuple[int, int]) -> None:
    """The resize as it is written most simply, on images laid out channel by channel."""
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 9), (9, 1), (3, 3), (64, 63), (200, 301)]:
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        last = image.contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1)
        for box in [(0, 0, height, width), (height // 3, width // 4, height - height // 3, width - width // 4)]:
            top, left, h, w = box
            part = image[:, top : top + h, left : left + w].contiguous()
            plain = F.interpolate(part[None], size=size, mode="bicubic", antialias=True)[0]
            for given in (image, last):
                assert torch.equal(crop_resize(given, box, size), plain)
                assert torch.equal(crop_resize(given, box, size, flip=True), plain.flip(2))


@pytest.mark.parametrize("crop", ["random_resized", "resize"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_view_of_a_file_is_that_of_its_pixels(crop: Any, flip: bool, kind: str) -> None:
    for draws, (height, width) in zip(
        uniforms(0, Purpose.CROP, 0, 4, CROP_DRAWS), [(50, 70), (32, 32), (90, 33), (8, 9)], strict=True
    ):
        data = encode(picture(height, width), kind)
        image = decode_image(data)
        ours = view(data, crop, 0.5, (32, 32), draws, flip)
        assert torch.equal(ours, view_of_decoded(image, crop, 0.5, (32, 32), draws, flip))
        box = random_crop_box(height, width, 0.5, draws)
        plain = crop_resize(image, box, (32, 32)) if crop == "random_resized" else resize_center(image, (32, 32))
        assert torch.equal(ours, plain.flip(2) if flip else plain)
        # Too small to be halved, or no JPEG: DCT scaling changes nothing.
        if kind == "PNG" or min(height, width) < 64:
            assert torch.equal(view(data, crop, 0.5, (32, 32), draws, flip, dct_scaling=True), ours)


@pytest.mark.parametrize("crop", ["random_resized", "resize"])
@pytest.mark.parametrize("flip", [False, True])
def test_dct_scaling_is_near(crop: Any, flip: bool) -> None:
    """The same part of the picture, whatever remains when its sides and edges are divided by 2, 4 or 8."""
    for draws, (height, width) in zip(
        uniforms(0, Purpose.CROP, 0, 6, CROP_DRAWS),
        [(200, 300), (201, 301), (399, 333), (215, 640), (517, 229), (1030, 1025)],
        strict=True,
    ):
        data = encode(picture(height, width), quality=95)
        plain, scaled = (view(data, crop, 0.5, (32, 32), draws, flip, dct_scaling=on) for on in (False, True))
        assert not torch.equal(plain, scaled)
        difference = (plain.float() - scaled.float()).abs().mean()
        assert difference < 4, (height, width)
        assert difference < (plain.float() - scaled.roll(1, 2).float()).abs().mean() / 2, (height, width)


def test_dct_scaling_keeps_the_crop_as_large_as_the_result() -> None:
    """The image could be halved in all cases, the crop not."""
    image = picture(80, 80)
    data = encode(image)
    halved = []
    for draws in uniforms(0, Purpose.CROP, 0, 10, CROP_DRAWS):
        plain, scaled = (
            view(data, "random_resized", 0.5, (32, 32), draws, False, dct_scaling=on) for on in (False, True)
        )
        halved.append(not torch.equal(plain, scaled))
        assert halved[-1] == (min(random_crop_box(80, 80, 0.5, draws)[2:]) >= 64)
    assert any(halved) and not all(halved)


@pytest.mark.parametrize(
    ("box", "factor", "expected"),
    [
        ((1, 3, 4, 6), 2, (0, 1, 3, 4)),  # edges 0.5 to 2.5, and 1.5 to 4.5: all halves go outwards
        ((3, 2, 2, 3), 4, (1, 0, 0, 1)),
        ((0, 0, 7, 16), 8, (0, 0, 1, 2)),
        ((6, 4, 4, 8), 2, (3, 2, 2, 4)),
    ],
)
def test_edges_of_a_smaller_box_are_rounded_outwards(box: Any, factor: int, expected: Any) -> None:
    assert transforms._divided(box, factor) == expected


def test_large_images_are_refused_with_dct_scaling_too() -> None:
    data = encode(picture(50, 40))
    for dct_scaling in (False, True):
        with pytest.raises(ValueError, match="40 × 50 pixels, more than"):
            view(data, "resize", 1.0, (8, 8), np.zeros(CROP_DRAWS), False, max_pixels=1999, dct_scaling=dct_scaling)


@pytest.mark.parametrize("height", [32, 33, 50, 97, 100, 131])
def test_centre_is_open_clips(height: int) -> None:
    from open_clip.transform import image_transform

    theirs = image_transform(32, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for width in (32, 47, 96, 101, 160):
        image = picture(height, width, seed=width)
        ours = resize_center(tensor(image), (32, 32))
        difference = (ours.float() - (theirs(image) * 255)).abs()
        assert difference.mean() < 0.3 and difference.max() <= 2, (height, width)


def test_centre_lies_where_torchvisions_does() -> None:
    """The long side is size * long // short; int(size / short * long) is a column short for 11 × 22 and others."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    rng = np.random.default_rng(0)
    shapes = [(11, 22), (77, 11), (13, 39), *rng.integers(8, 120, (60, 2)).tolist()]
    for height, width in shapes:
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        theirs = center_crop(resize(image, [30], InterpolationMode.BICUBIC, antialias=True), [30, 30])
        # Noise: a picture half a pixel aside differs by tens.
        assert (resize_center(image, (30, 30)).int() - theirs.int()).abs().float().mean() < 1, (height, width)


def test_images_smaller_than_asked_are_enlarged() -> None:
    assert resize_center(tensor(picture(5, 9)), (32, 32)).shape == (3, 32, 32)
    assert resize_center(tensor(picture(1, 300)), (8, 8)).shape == (3, 8, 8)


def test_other_shapes_than_squares_are_covered() -> None:
    image = torch.zeros((3, 100, 100), dtype=torch.uint8)
    image[:, 25:75] = 200
    assert (resize_center(image, (20, 40))[:, 3:-3] == 200).all()
    assert resize_center(image, (40, 20)).shape == (3, 40, 20)


def test_kept_patches() -> None:
    draws = uniforms(0, Purpose.PATCHES, 0, 500, 16)
    kept = kept_patches(draws, 5)
    assert kept.shape == (500, 5) and kept.dtype == torch.int64
    assert (kept.diff(dim=1) > 0).all()
    assert kept.min() >= 0 and kept.max() < 16
    counts = torch.bincount(kept.ravel(), minlength=16).double()
    expected = 500 * 5 / 16
    assert (counts - expected).abs().max() < 4 * math.sqrt(expected)
    np.testing.assert_array_equal(kept_patches(np.array([[0.5, 0.1, 0.9, 0.2]]), 2).numpy(), [[1, 3]])
