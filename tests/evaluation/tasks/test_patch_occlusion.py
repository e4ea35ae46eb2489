"""Covered patches: how many, which, and what accuracy is left."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.robustness import OcclusionConfig
from mmrep.data.captions import group_id
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Centre, centre_of
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.tasks.occlusion import Occluded, covered_patches, occlusion
from mmrep.evaluation.tasks.zeroshot import embed_classes, zeroshot
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=8, workers=0, occlusion=OcclusionConfig(shares=(0.25, 0.5, 1.0)))


def test_larger_shares_cover_what_smaller_ones_do() -> None:
    for position in range(20):
        masks = [covered_patches((4, 5), share, 3, position) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
        assert [mask.sum() for mask in masks] == [0, 5, 10, 15, 20]
        assert all((small <= large).all() for small, large in pairwise(masks))


def test_masks_depend_on_seed_and_position_and_are_uniform() -> None:
    first = covered_patches((4, 4), 0.5, 0, 0)
    assert (covered_patches((4, 4), 0.5, 0, 0) == first).all()
    assert (covered_patches((4, 4), 0.5, 0, 1) != first).any()
    assert (covered_patches((4, 4), 0.5, 1, 0) != first).any()
    often = np.mean([covered_patches((4, 4), 0.25, 0, position) for position in range(2000)], axis=0)
    assert np.abs(often - 0.25).max() < 0.04


def test_whole_patches_have_the_colour() -> None:
    image = torch.randint(0, 100, (3, 16, 16), dtype=torch.uint8)
    view = Occluded(Centre(16, 16), (4, 4), 0.5, (200, 210, 220), seed=1)
    found, mask = view(image, 5), covered_patches((4, 4), 0.5, 1, 5)
    tiles = found.unfold(1, 4, 4).unfold(2, 4, 4)
    for row in range(4):
        for column in range(4):
            tile = tiles[:, row, column].flatten(1)
            whole = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            expected = torch.tensor([[200], [210], [220]]).expand(3, 16) if mask[row, column] else whole
            assert (tile == expected).all()
    assert image.max() < 100


def test_accuracies_are_those_of_the_views(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    large = {"args": {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}}
    models = {"a": tiny("avg", seed=1).eval(), "b": tiny("max", seed=2, image=large).eval()}
    context = Context(models, open_set(SetConfig(str(colour_set))), CONFIG)
    found, records = occlusion(context), context.evalset.records
    for model, each, clean in zip(models.values(), found, zeroshot(context), strict=True):
        classes = embed_classes(model, context.evalset, 4)
        colour = tuple(round(255 * value) for value in model.config.image.mean)
        for share, accuracy in zip((0.25, 0.5, 1.0), each.metrics.values(), strict=True):
            view = Occluded(centre_of(model), model.image.grid, share, colour)
            pixels = torch.stack([view(records.image(i), group_id(records.key(i))) for i in range(16)])
            with torch.inference_mode():
                right = (model.encode_image(pixels) @ classes.T).argmax(1) == torch.tensor(context.labels)
            assert accuracy == right.float().mean()
        assert list(each.metrics) == ["occlusion_acc1@0.25", "occlusion_acc1@0.5", "occlusion_acc1@1"]
        assert set(each.chance.values()) == {0.25} and set(each.chance) == set(each.metrics)
        assert each.further["occlusion_clean_acc1"] == clean.metrics["acc1"]
        np.testing.assert_allclose(each.outcomes["right"].mean(0), list(each.metrics.values()))
        # All images are grey now, and one class gets them all.
        assert each.metrics["occlusion_acc1@1"] == 0.25


def test_ties_that_are_lucky_count_as_wrong(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    """All classes have one name, and each image is taken for the same."""
    same = open_set(SetConfig(str(colour_set)))._replace(classnames=["red"] * 4)
    (found,) = occlusion(Context({"a": tiny("avg", seed=1).eval()}, same, CONFIG))
    assert set(found.metrics.values()) == set(found.further.values()) == {0.25}
    assert set(found.pessimistic) == {*found.metrics, *found.further} and set(found.pessimistic.values()) == {0}


def test_captions_are_refused(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    captions = open_set(SetConfig(f"{colour_set}/retrieval"))
    with pytest.raises(ConfigError, match="set retrieval: task occlusion needs images with one class each"):
        occlusion(Context({"a": tiny("avg")}, captions, CONFIG))


def test_shares_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"occlusion\.shares: 0\.5 occurs twice"):
        OcclusionConfig(shares=(0.5, 0.5))
    with pytest.raises(ConfigError, match=r"occlusion\.shares"):
        OcclusionConfig(shares=(1.5,))
