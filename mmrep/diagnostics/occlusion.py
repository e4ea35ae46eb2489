"""Accuracy without the salient part of the images, compared with the loss of as many pixels elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.data.decode import decode_image, read_image
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.tar import DataError
from mmrep.data.transforms import resize_center
from mmrep.model.dual_encoder import DualEncoder

Pixels = UInt8[Tensor, "batch 3 height width"]
Masks = Bool[Tensor, "batch height width"]
Labels = Int64[Tensor, " batch"]
MaskedBatch = tuple[UInt8[Tensor, "_ 3 _ _"], Bool[Tensor, "_ _ _"], Int64[Tensor, " _"]]
"""Images, masks of their salient part, labels."""

MASK = "mask.png"
"""The member of a sample that shows its salient part, white on black, as in mmrep's scenes."""


class Removal(NamedTuple):
    """Accuracy on the same images: whole, without the salient part, and without as many pixels elsewhere (the control).

    Attributes:
        images: number of images.
        whole: accuracy on whole images.
        salient: accuracy without the salient part.
        control: accuracy without the control's pixels.
        drop_salient: whole − salient.
        drop_control: whole − control, the cost of missing pixels wherever they are.
        removed: mean share of the image that was removed.
        overlap: mean share of the salient pixels that the control removes as well; 0 where there is room for both.
    """

    images: int
    whole: float
    salient: float
    control: float
    drop_salient: float
    drop_control: float
    removed: float
    overlap: float


def accuracy_under_removal(
    batches: Iterable[MaskedBatch], predict: Callable[[Pixels], Labels], boxes: bool = True
) -> Removal:
    """Measure a model's accuracy without the salient part, whose pixels get the colour around it.

    The masks must come from the data, or from one external model for all models that are compared. A model's own map
    would remove what that model looks at, so models could not be compared.

    Args:
        batches: images, masks of their salient part, labels; see `masked_batches`.
        predict: returns labels of images; see `class_predictor`.
        boxes: remove the box around the salient part, so that the hole does not show its shape.

    Raises:
        MmrepError: a mask, or its box, that covers the whole image.
        ConfigError: no images.
    """
    count, right, removed, overlap = 0, np.zeros(3), 0.0, 0.0
    for images, shapes, labels in batches:
        masks = bounding_boxes(shapes) if boxes else shapes
        control = control_masks(masks)
        # Both get one colour, so that they differ in the place alone and the object's colour appears nowhere else.
        colours = background(images, masks)
        versions = (images, remove(images, masks, colours), remove(images, control, colours))
        right += [int((predict(version).cpu() == labels).sum()) for version in versions]
        sizes = masks.sum((1, 2))
        removed += float((sizes / masks[0].numel()).sum())
        overlap += float(((masks & control).sum((1, 2)) / sizes.clamp(min=1)).sum())
        count += len(images)
    if count == 0:
        raise ConfigError("removal of the salient part: no images were given")
    whole, salient, other = (right / count).tolist()
    return Removal(count, whole, salient, other, whole - salient, whole - other, removed / count, overlap / count)


def background(images: Pixels, masks: Masks) -> UInt8[Tensor, "batch 3"]:
    """Return the colour around the masked pixels: the median of all others, channel by channel.

    Raises:
        MmrepError: a mask that covers its whole image.
    """
    whole = masks.all(2).all(1)
    if whole.any():
        raise MmrepError(
            f"removal of the salient part: the mask of image {int(whole.nonzero()[0])} of the batch, or its box, "
            "covers all of it; leave it out, or remove masks instead of boxes"
        )
    return images.float().masked_fill(masks[:, None], torch.nan).flatten(2).nanmedian(2).values.to(torch.uint8)


def remove(images: Pixels, masks: Masks, colours: UInt8[Tensor, "batch 3"]) -> Pixels:
    """Return the images with their masked pixels replaced by one colour an image."""
    return torch.where(masks[:, None], colours[:, :, None, None], images)


def bounding_boxes(masks: Masks, margin: int = 1) -> Masks:
    """Return boxes around masks, wider by a margin, since edges are smooth; empty masks stay empty."""
    rows, columns = (_span(masks.any(dim), margin) for dim in (2, 1))
    return rows[:, :, None] & columns[:, None, :]


def _span(hits: Bool[Tensor, "batch places"], margin: int) -> Bool[Tensor, "batch places"]:
    """Return the places from the first hit to the last, with a margin on both sides."""
    grown = F.max_pool1d(hits.float()[:, None], 2 * margin + 1, stride=1, padding=margin)[:, 0] > 0
    since_first, until_last = grown.cumsum(1) > 0, grown.flip(1).cumsum(1).flip(1) > 0
    return since_first & until_last


def control_masks(masks: Masks) -> Masks:
    """Move each mask, without leaving the image, to where it overlaps its old place least.

    Of several such places the farthest one is taken, in rows plus columns; of those, the first of the shifts 0, 1, …,
    −2, −1 of rows, then of columns. A mask from border to border stays.
    """
    height, width = masks.shape[1:]
    # The spectrum gives the overlaps of cyclic shifts. `far` excludes those that move pixels across a border.
    spectrum = torch.fft.rfft2(masks.double())
    overlaps = torch.fft.irfft2(spectrum.abs().square(), s=(height, width)).round()
    far = _distances(masks.any(2))[:, :, None] + _distances(masks.any(1))[:, None, :]
    # Overlaps are whole numbers; distances are scaled below 1, so that they only break ties.
    best = (overlaps - far / (height + width)).flatten(1).argmin(1).tolist()
    moved = [mask.roll((at // width, at % width), (0, 1)) for mask, at in zip(masks, best, strict=True)]
    return torch.stack(moved) if moved else masks


def _distances(hits: Bool[Tensor, "batch places"]) -> Float[Tensor, "batch shifts"]:
    """Return how far each cyclic shift moves the hits, forwards or backwards; −∞ if it moves some across the border."""
    size = hits.shape[1]
    shifts = torch.arange(size, device=hits.device)
    before, after = (side.int().argmax(1, keepdim=True) for side in (hits, hits.flip(1)))
    backwards = torch.where(shifts >= size - before, (size - shifts).double(), -torch.inf)
    return torch.where(shifts <= after, shifts.double(), backwards)


def class_predictor(model: DualEncoder, classes: Float[Tensor, "classes embed"]) -> Callable[[Pixels], Labels]:
    """Return a zero-shot predictor, whose prediction is the class with the nearest embedding.

    Args:
        model: in evaluation mode.
        classes: embeddings of unit length.
    """

    @torch.inference_mode()
    def predict(images: Pixels) -> Labels:
        return (model.encode_image(images.to(model.device)) @ classes.to(model.device).T).argmax(1)

    return predict


def masked_batches(
    samples: Sequence[tuple[ShardIndex, int]],
    labels: Sequence[int],
    size: tuple[int, int],
    batch_size: int,
    masks: Callable[[Pixels], Masks] | None = None,
) -> Iterator[MaskedBatch]:
    """Yield images of shards as evaluation resizes them, masks of their salient part, and labels.

    Args:
        samples: shard and row of each image.
        labels: the class of each image.
        size: rows and columns of the images.
        batch_size: images in a batch.
        masks: an external model that finds the salient part of images; None: read the members `mask.png`.

    Raises:
        DataError: an image or a mask that can't be read.
    """
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        images = torch.stack([resize_center(read_image(index, row), size) for index, row in part])
        found = torch.stack([read_mask(index, row, size) for index, row in part]) if masks is None else masks(images)
        yield images, found, torch.tensor(labels[start : start + batch_size])


def read_mask(index: ShardIndex, row: int, size: tuple[int, int]) -> Bool[Tensor, "rows columns"]:
    """Return the salient part of a sample, from its member `mask.png`, resized and cropped like its image.

    Raises:
        DataError: the member is missing or not an image.
    """
    data = read_member(index, row, MASK)
    try:
        pixels = decode_image(data)
    except ValueError as error:
        raise DataError(f"{index.sample(row)}, member {MASK!r}: {error}") from error
    return resize_center(pixels, size)[0] >= 128
