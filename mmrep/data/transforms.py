"""From an image file to training pixels: crops and resizes, whose randomness comes from outside, as uniform draws."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from mmrep.config.data import Crop
from mmrep.data.decode import MAX_PIXELS, decode_image, image_header
from mmrep.data.jpeg import JPEG_START, reduction
from mmrep.pixels import Box, centre, cover, is_thin, resized_part

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES
"""Uniform draws that `random_crop_box` takes."""
_RATIO = (3 / 4, 4 / 3)


def view(
    data: bytes,
    crop: Crop,
    min_scale: float,
    size: tuple[int, int],
    draws: NDArray,
    flip: bool,
    max_pixels: int = MAX_PIXELS,
    dct_scaling: bool = False,
) -> UInt8[Tensor, "3 rows columns"]:
    """The training pixels of one image file.

    Args:
        data: the file.
        crop: `random_resized` or `resize` (short side, centre).
        min_scale: least share of the area that a random crop keeps.
        size: rows and columns of the result.
        draws: (CROP_DRAWS,) uniform draws; `resize` needs none of them.
        flip: whether to mirror left and right.
        max_pixels: a larger image is refused.
        dct_scaling: whether a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size where the crop stays at least as
            large as the result. The box is the same, to half a pixel of the smaller image; the pixels differ.

    Raises:
        ValueError: see `decode_image`.
    """
    if not (dct_scaling and data.startswith(JPEG_START)):
        return view_of_decoded(decode_image(data, max_pixels), crop, min_scale, size, draws, flip)
    height, width = image_header(data, max_pixels)[:2]
    if crop == "resize":
        box, least = (0, 0, height, width), cover(height, width, size)
    else:
        box = random_crop_box(height, width, min_scale, draws)
        least = -(-size[0] * height // box[2]), -(-size[1] * width // box[3])
    image = decode_image(data, max_pixels, least)
    if tuple(image.shape[1:]) != (height, width):
        box = _divided(box, reduction(height, width, least))
    if crop == "resize":
        # The rows and columns of the full-size image: those of the small one may be one less or more.
        middle = _middle(image, box, cover(height, width, size), size)
        return middle.flip(2) if flip else middle
    return crop_resize(image, box, size, flip)


def view_of_decoded(
    image: UInt8[Tensor, "3 height width"],
    crop: Crop,
    min_scale: float,
    size: tuple[int, int],
    draws: NDArray,
    flip: bool,
) -> UInt8[Tensor, "3 rows columns"]:
    """The training pixels of a decoded image, the same as `view` makes of its file; arguments as there."""
    if crop == "resize":
        middle = resize_center(image, size)
        return middle.flip(2) if flip else middle
    height, width = image.shape[1:]
    return crop_resize(image, random_crop_box(height, width, min_scale, draws), size, flip)


def random_crop_box(height: int, width: int, min_scale: float, draws: NDArray) -> Box:
    """A random part of an image: area from `min_scale` to all of it, aspect ratio from 3/4 to 4/3 (log-uniform).

    The law of torchvision's RandomResizedCrop: tries until a box fits, else the largest centred box within the ratios.

    Args:
        height: of the image.
        width: of the image.
        min_scale: least share of the area.
        draws: (CROP_DRAWS,) uniform draws.
    """
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for scale, ratio, top, left in draws.reshape(CROP_TRIES, 4).tolist():
        area = height * width * (min_scale + (1 - min_scale) * scale)
        aspect = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    aspect = min(max(width / height, _RATIO[0]), _RATIO[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (height - h) // 2, (width - w) // 2, h, w


def _divided(box: Box, factor: int) -> Box:
    """The box in an image `factor` times smaller: its edges rounded to whole pixels, halves outwards.

    Rounded all the same way, halves would move the whole picture instead of widening it.
    """
    top, left = (math.ceil(edge / factor - 0.5) for edge in box[:2])
    bottom, right = (math.floor((box[i] + box[i + 2]) / factor + 0.5) for i in (0, 1))
    return top, left, bottom - top, right - left


def crop_resize(
    image: UInt8[Tensor, "3 height width"], box: Box, size: tuple[int, int], flip: bool = False
) -> UInt8[Tensor, "3 rows columns"]:
    """The part of an image within `box`, resized (bicubic, antialiased, in uint8) to `size`, mirrored if `flip`.

    Fastest on images laid out channels last, as `decode_image` makes them; so is the result.
    """
    top, left, h, w = box
    part = image[:, top : top + h, left : left + w]
    if (h, w) != size:
        # torch's uint8 kernel repacks its input and its output unless these are contiguous, channels last, and seen
        # to be so, which a batch of one is only by the stride of its first dimension. Pixels are the same.
        rows = torch.from_numpy(np.ascontiguousarray(part.permute(1, 2, 0).numpy()))
        part = F.interpolate(rows[None].permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)[0]
    return part.flip(2) if flip else part


def resize_center(image: UInt8[Tensor, "3 height width"], size: tuple[int, int]) -> UInt8[Tensor, "3 rows columns"]:
    """Resizes the image until it just covers `size` (bicubic, antialiased), then cuts the centre out.

    Of a thin image, no more than the centre is made (see `resized_part`).
    """
    height, width = image.shape[1:]
    return _middle(image, (0, 0, height, width), cover(height, width, size), size)


def _by_pillow(image: Tensor, whole: tuple[int, int], part: Box) -> Tensor:
    return torch.from_numpy(resized_part(image.permute(1, 2, 0).numpy(), whole, part)).permute(2, 0, 1)


def _middle(image: Tensor, box: Box, whole: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The centre of what the image within `box` becomes when it is resized to `whole` rows and columns."""
    top, left, rows, columns = part = centre(whole, size)
    if is_thin(box[2:], whole, part):
        return _by_pillow(image[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]], whole, part)
    return crop_resize(image, box, whole)[:, top : top + rows, left : left + columns]


def kept_patches(draws: NDArray, keep: int) -> Tensor:
    """(batch, keep) ascending positions of the patches with the smallest of the (batch, patches) draws."""
    order = torch.from_numpy(draws).argsort(dim=1, stable=True)[:, :keep]
    return order.sort(dim=1).values
