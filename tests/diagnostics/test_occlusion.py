"""Removal of the salient part: masks by hand, controls against brute force, scenes with their masks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import colour_samples, png, write_tar
from torch import Tensor

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.config.shards import ScenesSpec
from mmrep.data.indexing import load_index
from mmrep.data.scenes import Split, scene, write_scenes
from mmrep.data.tar import DataError
from mmrep.diagnostics.occlusion import (
    MASK,
    accuracy_under_removal,
    background,
    bounding_boxes,
    class_predictor,
    control_masks,
    masked_batches,
    read_mask,
    remove,
)
from mmrep.model.dual_encoder import DualEncoder


def rectangle(rows: slice, columns: slice, size: int = 8) -> Tensor:
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, rows, columns] = True
    return mask


def test_removed_pixels_take_the_colour_of_the_others() -> None:
    images = torch.tensor([[[[10, 20], [31, 250]], [[0, 2], [1, 9]], [[7, 7], [7, 7]]]], dtype=torch.uint8)
    masks = torch.tensor([[[False, False], [False, True]]])
    colours = background(images, masks)
    assert colours.tolist() == [[20, 1, 7]]
    found, kept = remove(images, masks, colours), ~masks[:, None].expand_as(images)
    assert found[0, :, 1, 1].tolist() == [20, 1, 7]
    assert torch.equal(found[kept], images[kept])
    assert torch.equal(remove(images, torch.zeros_like(masks), colours), images)


def test_a_mask_of_the_whole_image_is_refused() -> None:
    masks = torch.cat([rectangle(slice(2), slice(2)), torch.ones(1, 8, 8, dtype=torch.bool)])
    with pytest.raises(MmrepError, match="mask of image 1 of the batch, or its box, covers all"):
        background(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), masks)


def test_the_control_never_shows_the_colour_of_the_salient_part() -> None:
    seen: list[Tensor] = []
    images, mask = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8), rectangle(slice(0, 6), slice(0, 7))
    images[mask[:, None].expand_as(images)] = 200
    labels = torch.zeros(1, dtype=torch.int64)
    accuracy_under_removal([(images, mask, labels)], lambda x: (seen.append(x), labels)[1], boxes=False)
    whole, salient, control = seen
    assert torch.equal(whole, images) and (salient == 90).all()
    assert (control == 200).sum() < (images == 200).sum() and ((control == 200) <= (images == 200)).all()


def test_the_control_is_the_same_shape_elsewhere() -> None:
    mask = rectangle(slice(2, 4), slice(3, 6))
    assert torch.equal(control_masks(mask), rectangle(slice(6, 8), slice(0, 3)))


def test_the_control_of_a_box_is_one_box_of_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    ends = torch.rand(200, 2, 2, generator=generator).mul(torch.tensor([9, 12])).long().sort(1).values
    at = [torch.arange(n).expand(200, n) for n in (9, 12)]
    rows, columns = ((x >= ends[:, 0, i, None]) & (x <= ends[:, 1, i, None]) for i, x in enumerate(at))
    masks = rows[:, :, None] & columns[:, None, :]
    control = control_masks(masks)
    assert torch.equal(bounding_boxes(control, margin=0), control)
    for dim in (1, 2):
        assert torch.equal(control.any(dim).sum(1), masks.any(dim).sum(1))


def moved(mask: Tensor, rows: int, columns: int) -> Tensor:
    """The mask after a shift, in which pixels that leave the image are lost."""
    height, width = mask.shape
    padded = F.pad(mask, (width, width, height, height))
    return padded[height - rows : 2 * height - rows, width - columns : 2 * width - columns]


def test_no_shift_inside_the_image_overlaps_less_or_as_little_from_farther() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 7, 9, generator=generator) < torch.linspace(0.05, 0.9, 40)[:, None, None]
    for mask, top, left in zip(masks, torch.arange(40) % 4, torch.arange(40) % 5, strict=True):
        mask[:top], mask[:, :left], mask[6:], mask[:, 7:] = False, False, False, False
    shifts = [(i, j) for i in range(-6, 7) for j in range(-8, 9)]
    for mask, control in zip(masks, control_masks(masks), strict=True):
        places = [(moved(mask, i, j), abs(i) + abs(j)) for i, j in shifts]
        inside = [(int((mask & place).sum()), -far, place) for place, far in places if place.sum() == mask.sum()]
        least = min(score[:2] for score in inside)
        assert any(torch.equal(control, place) for *score, place in inside if tuple(score) == least)


def test_a_mask_without_room_stays_and_overlaps() -> None:
    images, labels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    cross = rectangle(slice(2, 3), slice(0, 8)) | rectangle(slice(0, 8), slice(5, 6))
    assert torch.equal(control_masks(cross), cross)
    for mask, overlap in ((cross, 1.0), (rectangle(slice(2, 6), slice(2, 6)), 4 / 16)):
        assert accuracy_under_removal([(images, mask, labels)], corner_reader, boxes=False).overlap == overlap


def corner_reader(images: Tensor) -> Tensor:
    """A model that reads the class off the pixel at (1, 1)."""
    return images[:, 0, 1, 1].long() // 100


def test_a_model_that_reads_the_salient_part_alone_loses_all_by_its_removal() -> None:
    labels = torch.tensor([0, 2, 2, 0])
    images = torch.full((4, 3, 8, 8), 110, dtype=torch.uint8)
    images[:, :, 1, 1] = (labels * 100).to(torch.uint8)[:, None]
    masks = rectangle(slice(0, 3), slice(0, 3)).expand(4, 8, 8)
    found = accuracy_under_removal(
        [(images[:3], masks[:3], labels[:3]), (images[3:], masks[3:], labels[3:])], corner_reader, boxes=False
    )
    assert found._replace(removed=0) == (4, 1.0, 0.0, 1.0, 1.0, 0.0, 0, 0.0)
    assert found.removed == pytest.approx(9 / 64)


def test_a_model_that_reads_the_rest_loses_by_the_control_alone() -> None:
    labels, mask = torch.tensor([2]), rectangle(slice(4, 8), slice(4, 8))
    images = torch.full((1, 3, 8, 8), 110, dtype=torch.uint8)
    images[:, :, 1, 1] = 200
    found = accuracy_under_removal([(images, mask, labels)], corner_reader, boxes=False)
    assert (found.drop_salient, found.drop_control) == (0.0, 1.0)


def test_boxes_hide_the_shape() -> None:
    ring = rectangle(slice(3, 6), slice(2, 5)) ^ rectangle(slice(4, 5), slice(3, 4))
    masks = torch.cat([ring, rectangle(slice(7, 8), slice(0, 1)), torch.zeros(1, 8, 8, dtype=torch.bool)])
    corner = rectangle(slice(6, 8), slice(0, 2))
    assert torch.equal(bounding_boxes(masks), torch.cat([rectangle(slice(2, 7), slice(1, 6)), corner, masks[2:]]))
    apart = ring | rectangle(slice(0, 1), slice(7, 8))
    assert torch.equal(bounding_boxes(apart, margin=0), rectangle(slice(0, 6), slice(2, 8)))
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    found = accuracy_under_removal([(images, masks, labels)], corner_reader)
    assert found.removed == pytest.approx((25 + 4 + 0) / (3 * 64))


def test_no_images_are_an_error() -> None:
    with pytest.raises(ConfigError, match="no images"):
        accuracy_under_removal([], corner_reader)


def test_scenes_come_with_their_masks(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", ScenesSpec(train=1, classes_test=64, gallery=1, size=24))
    index = load_index(tmp_path / "scenes/classes/test/0.tar")
    samples = [(index, row) for row in range(5)]
    batches = list(masked_batches(samples, list(range(5)), (24, 24), 2))
    assert [len(images) for images, _, _ in batches] == [2, 2, 1]
    assert torch.cat([labels for _, _, labels in batches]).tolist() == [0, 1, 2, 3, 4]
    for row in range(5):
        drawn = scene(0, row, 24, Split.CLASSES)
        images, masks, _ = batches[row // 2]
        assert torch.equal(masks[row % 2], torch.from_numpy(drawn.mask))
        assert torch.equal(images[row % 2], torch.from_numpy(drawn.image).permute(2, 0, 1))
    # At another size the mask goes where the image goes.
    half = read_mask(index, 0, (12, 12))
    assert 0.2 * half.numel() > (half ^ torch.from_numpy(scene(0, 0, 12, Split.CLASSES).mask)).sum()


def test_masks_of_an_external_model(colour_set: Path) -> None:
    index = load_index(colour_set / "test/0.tar")
    ((images, masks, _),) = masked_batches([(index, 0)], [0], (16, 16), 4, masks=lambda x: x[:, 0] > 100)
    assert torch.equal(masks, images[:, 0] > 100)


def test_a_sample_without_a_mask_and_one_with_a_broken_one(tmp_path: Path, colour_set: Path) -> None:
    with pytest.raises(DataError, match=r"sample '000100' has no member 'mask\.png'"):
        read_mask(load_index(colour_set / "test/0.tar"), 0, (16, 16))
    key, members = colour_samples(1)[0]
    shard = write_tar(tmp_path / "0.tar", [(key, {**members, MASK: png((1, 1, 1))[:40]})])
    with pytest.raises(DataError, match=r"sample '000000', member 'mask\.png'") as error:
        read_mask(load_index(shard), 0, (16, 16))
    assert "\n" not in str(error.value)


def test_the_nearest_class_is_predicted(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg").eval()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classes = model.encode_image(images)
    assert class_predictor(model, classes.flip(0))(images).tolist() == [3, 2, 1, 0]
