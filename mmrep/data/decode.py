"""Images of samples as uint8 tensors."""

import io

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from mmrep.data.shards import DataError, ShardIndex, image_extension, read_member

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels of an image file, laid out channels last.

    Raises:
        ValueError: not an image, truncated, or more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"{width} × {height} pixels, more than data.max_pixels {max_pixels}")
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"can't decode image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def read_image(index: ShardIndex, sample: int, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """The decoded image of a sample.

    Raises:
        DataError: naming shard, key, member and reason.
    """
    extension = image_extension(index, sample)
    data = read_member(index, sample, extension)
    try:
        return decode_image(data, max_pixels)
    except ValueError as error:
        key = index.keys[sample].decode()
        raise DataError(f"{index.path}: sample {key!r}, member {extension!r}: {error}") from error
