"""Crops and resizes on uint8 tensors; their randomness comes from outside, as uniform draws."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

CROP_TRIES = 10
CROP_DRAWS = 4 * CROP_TRIES
"""Uniform draws that `random_crop_box` takes."""
_RATIO = (3 / 4, 4 / 3)

Box = tuple[int, int, int, int]
"""Top, left, height, width."""


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


def crop_resize(
    image: UInt8[Tensor, "3 height width"], box: Box, size: tuple[int, int], flip: bool = False
) -> UInt8[Tensor, "3 rows columns"]:
    """The part of an image within `box`, resized (bicubic, antialiased, in uint8) to `size`, mirrored if `flip`."""
    top, left, h, w = box
    part = image[:, top : top + h, left : left + w]
    if (h, w) != size:
        part = F.interpolate(part[None], size=size, mode="bicubic", antialias=True)[0]
    return part.flip(2) if flip else part


def resize_center(image: UInt8[Tensor, "3 height width"], size: tuple[int, int]) -> UInt8[Tensor, "3 rows columns"]:
    """Resizes the image until it just covers `size` (bicubic, antialiased), then cuts the centre out."""
    height, width = image.shape[1:]
    if size[0] * width >= size[1] * height:
        cover = size[0], size[0] * width // height
    else:
        cover = size[1] * height // width, size[1]
    resized = crop_resize(image, (0, 0, height, width), cover)
    top, left = (round((resized.shape[i + 1] - size[i]) / 2) for i in (0, 1))
    return resized[:, top : top + size[0], left : left + size[1]]


def kept_patches(draws: NDArray, keep: int) -> Tensor:
    """(batch, keep) ascending positions of the patches with the smallest of the (batch, patches) draws."""
    order = torch.from_numpy(draws).argsort(dim=1, stable=True)[:, :keep]
    return order.sort(dim=1).values
