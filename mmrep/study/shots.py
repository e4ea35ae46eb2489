"""Small pictures of test images, and heat maps of what a model's head looks at, for pages and contact sheets."""

import base64
import io
import logging
import random
from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrep.config.checks import MmrepError
from mmrep.diagnostics.maps import patch_weights
from mmrep.diagnostics.pictures import heat_map_picture
from mmrep.evaluation.embedding.embed import centre_of
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder

LOG = logging.getLogger("mmrep")

SIDE = 160
"""Pixels of the longer side of a small picture."""
_QUALITY = 80


def chosen(rows: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of some rows, drawn at random but always the same ones, in their order."""
    rows = [int(row) for row in rows]
    return rows if len(rows) <= count else sorted(random.Random(0).sample(rows, count))  # noqa: S311  # no secret


def picture_of(records: Records, row: int, side: int = SIDE) -> Image.Image:
    """Return a small picture of a test image, whole and in its own shape.

    Raises:
        DataError: the image can't be read.
    """
    return resized(Image.fromarray(records.image(row).permute(1, 2, 0).numpy()), side)


def resized(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """Return a picture whose longer side has `side` pixels."""
    factor = side / max(picture.size)
    size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def data_uri(picture: Image.Image) -> str:
    """Return a picture as a JPEG in a data URI."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_maps(
    model: DualEncoder,
    records: Records,
    rows: Sequence[int],
    toward: Float[Tensor, "rows embed"] | Float[Tensor, " embed"] | None = None,
    side: int = SIDE,
) -> list[Image.Image]:
    """Return the patch weights of test images over grey copies of them, as the model sees them.

    Each picture has a scale of its own. The list is empty, with a warning, where the weights can't be computed or
    drawn (see `patch_weights`; matplotlib is not installed).

    Args:
        model: in evaluation mode.
        records: the images.
        rows: which of them.
        toward: a direction, such as the embedding of the text searched for; see `patch_weights`.
        side: pixels of the longer side of a picture.

    Raises:
        DataError: an image can't be read.
    """
    if not rows:
        return []
    images = torch.stack([centre_of(model)(records.image(row), row) for row in rows])
    return drawn(model, images, toward, side)


def drawn(
    model: DualEncoder,
    images: Tensor,
    toward: Float[Tensor, "rows embed"] | Float[Tensor, " embed"] | None = None,
    side: int = SIDE,
) -> list[Image.Image]:
    """Return `heat_maps` of uint8 images at the model's size."""
    try:
        weights = patch_weights(model, images, toward)
        maps = [heat_map_picture(image, own) for image, own in zip(images, weights, strict=True)]
    except (MmrepError, RuntimeError) as error:
        LOG.warning("no heat maps: %s", " ".join(str(error).split()))
        return []
    return [resized(each, side) for each in maps]
