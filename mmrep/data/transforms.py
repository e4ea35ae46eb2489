"""From an image file to training pixels: crops and resizes whose randomness is passed in as uniform draws."""

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
"""Number of uniform draws that `random_crop_box` takes."""
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
    """Return the training pixels of one image file.

    Args:
        data: the file.
        crop: `random_resized` or `resize` (short side, then the centre).
        min_scale: least share of the area that a random crop keeps.
        size: rows and columns of the result.
        draws: (CROP_DRAWS,) uniform draws; `resize` uses none of them.
        flip: mirror left and right.
        max_pixels: larger images are refused.
        dct_scaling: decode a JPEG at 1/2, 1/4 or 1/8 of its size if the crop stays at least as large as the result.
            The box is the same to half a pixel of the smaller image; the pixels differ.

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
        # Rows and columns follow from the full-size image: those of the small one may differ by one.
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
    """Return the training pixels of a decoded image, equal to those that `view` makes of its file."""
    if crop == "resize":
        middle = resize_center(image, size)
        return middle.flip(2) if flip else middle
    height, width = image.shape[1:]
    return crop_resize(image, random_crop_box(height, width, min_scale, draws), size, flip)


def random_crop_box(height: int, width: int, min_scale: float, draws: NDArray) -> Box:
    """Return a random box: area from `min_scale` to the whole image, aspect ratio from 3/4 to 4/3 (log-uniform).

    The distribution is that of torchvision's RandomResizedCrop: it tries until a box fits, and falls back to the
    largest centred box within the ratios.

    Args:
        height: height of the image.
        width: width of the image.
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
    """Return the box in an image `factor` times smaller.

    Its edges are rounded to whole pixels, halves outwards. If all halves were rounded the same way, they would move
    the picture instead of widening it.
    """
    top, left = (math.ceil(edge / factor - 0.5) for edge in box[:2])
    bottom, right = (math.floor((box[i] + box[i + 2]) / factor + 0.5) for i in (0, 1))
    return top, left, bottom - top, right - left


def crop_resize(
    image: UInt8[Tensor, "3 height width"], box: Box, size: tuple[int, int], flip: bool = False
) -> UInt8[Tensor, "3 rows columns"]:
    """Crop an image to `box`, resize it to `size` (bicubic, antialiased, in uint8), and mirror it if `flip`.

    It is fastest on channels-last images, such as those of `decode_image`; the result is channels last too.
    """
    top, left, h, w = box
    part = image[:, top : top + h, left : left + w]
    if (h, w) != size:
        # torch's uint8 kernel copies its input and output unless they are contiguous in channels-last order. In a batch
        # of one, it sees that only by the stride of the first dimension. The pixels are the same.
        rows = torch.from_numpy(np.ascontiguousarray(part.permute(1, 2, 0).numpy()))
        part = F.interpolate(rows[None].permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=True)[0]
    return part.flip(2) if flip else part


def resize_center(image: UInt8[Tensor, "3 height width"], size: tuple[int, int]) -> UInt8[Tensor, "3 rows columns"]:
    """Resize an image until it just covers `size` (bicubic, antialiased), then crop its centre.

    Of a thin image, only the centre is computed (see `resized_part`).
    """
    height, width = image.shape[1:]
    return _middle(image, (0, 0, height, width), cover(height, width, size), size)


def _middle(image: Tensor, box: Box, whole: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the centre of `image` within `box` after a resize to `whole` rows and columns."""
    top, left, rows, columns = part = centre(whole, size)
    if is_thin(box[2:], whole, part):
        pixels = image[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]].permute(1, 2, 0).numpy()
        return torch.from_numpy(resized_part(pixels, whole, part)).permute(2, 0, 1)
    return crop_resize(image, box, whole)[:, top : top + rows, left : left + columns]


def kept_patches(draws: NDArray, keep: int) -> Tensor:
    """Return the (batch, keep) ascending positions of the smallest of the (batch, patches) draws."""
    order = torch.from_numpy(draws).argsort(dim=1, stable=True)[:, :keep]
    return order.sort(dim=1).values
