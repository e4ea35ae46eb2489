"""Images of samples as uint8 tensors."""

import io
import struct
import zlib

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmrep.data.shards import DataError, ShardIndex, image_extension, read_member

MAX_PIXELS = 89_478_485
"""Pillow's own limit against decompression bombs."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""By content, whatever the extension says; Pillow knows more, and starts Ghostscript for one of them."""
_DECODER_ERRORS = (OSError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8[Tensor, "3 height width"]:
    """RGB pixels of an image file, laid out channels last.

    Raises:
        ValueError: not an image, truncated, or more than `max_pixels` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ValueError(f"{width} × {height} pixels, more than data.max_pixels {max_pixels}")
            pixels = _rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"not an image ({', '.join(FORMATS)})") from error
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(f"can't decode image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow would clip at 255 instead of scaling it.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; without this step Pillow warns of every such file
    return np.array(image.convert("RGB"))


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
