"""Corrupted images: their definitions, their draws, and the accuracy that is left."""

import colorsys
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.robustness import CORRUPTIONS, CorruptionConfig
from mmrep.data.captions import group_id
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Centre, centre_of
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.records import ShardRecords
from mmrep.evaluation.tasks.corrupted import Corrupted, _convolve, _gaussian_blur, _resample, corrupt
from mmrep.evaluation.tasks.corruption import corruption, corruption_metrics
from mmrep.evaluation.tasks.zeroshot import Predictions, embed_classes, zeroshot
from mmrep.model.dual_encoder import DualEncoder

SIZE = 56
KINDS, SEVERITIES = ("gaussian_noise", "fog", "contrast"), (1, 5)
CONFIG = EvaluationConfig(batch_size=21, workers=0, corruption=CorruptionConfig(KINDS, SEVERITIES))


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Smooth colours with an edge, whose pixels differ everywhere."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    pixels = np.stack([0.2 + 0.5 * x, 0.3 + 0.4 * y * x, 0.5 + 0.3 * np.sin(20 * y)])
    pixels[:, 20:30, 25:45] *= 0.3
    return torch.from_numpy((255 * pixels).astype(np.uint8))


def corrupted(photo: Tensor, kind: str, severity: int, position: int = 0, seed: int = 0) -> Tensor:
    return Corrupted(Centre(*photo.shape[1:]), kind, severity, seed)(photo, position).float()


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_kind(photo: Tensor, kind: str) -> None:
    before = photo.clone()
    changes = [(corrupted(photo, kind, severity) - photo).abs().mean().item() for severity in range(1, 6)]
    assert torch.equal(photo, before)
    assert min(changes) > 0.5
    # These change their nature from one severity to the next, or draw a direction.
    if kind not in ("elastic_transform", "fog", "snow", "motion_blur", "glass_blur"):
        assert all(weak < strong * 1.05 for weak, strong in pairwise(changes)), changes
    assert changes[4] > changes[0] or kind == "elastic_transform"


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_draws_depend_on_seed_kind_severity_and_position_alone(photo: Tensor, kind: str) -> None:
    first = corrupted(photo, kind, 3, position=2)
    assert torch.equal(first, corrupted(photo, kind, 3, position=2))
    fixed = kind in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(first, corrupted(photo, kind, 3, position=3)) == fixed
    assert torch.equal(first, corrupted(photo, kind, 3, position=2, seed=1)) == fixed


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(8, 8), (16, 24)])
def test_small_and_oblong_images(photo: Tensor, kind: str, size: tuple[int, int]) -> None:
    for severity in range(1, 6):
        found = Corrupted(Centre(*size), kind, severity)(photo, 0)
        assert found.shape == (3, *size) and found.dtype == torch.uint8


def test_noise_has_the_papers_strength() -> None:
    grey = torch.full((3, 128, 128), 128, dtype=torch.uint8)
    gaussian = corrupted(grey, "gaussian_noise", 2) / 255
    assert gaussian.std().item() == pytest.approx(0.12, rel=0.03)
    shot = corrupted(grey, "shot_noise", 1) / 255
    assert shot.mean().item() == pytest.approx(128 / 255, rel=0.01)
    assert shot.var().item() == pytest.approx(128 / 255 / 60, rel=0.05)
    impulse = corrupted(grey, "impulse_noise", 5)
    for value in (0, 255):
        assert (impulse == value).float().mean().item() == pytest.approx(0.27 / 2, rel=0.05)


def test_brightness_and_contrast(photo: Tensor) -> None:
    brighter = corrupted(photo, "brightness", 3)
    for row, column in ((0, 0), (25, 30), (50, 55)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(photo[:, row, column] / 255).tolist())
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)))
        np.testing.assert_allclose(brighter[:, row, column], expected, atol=0.51)
    black = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert (corrupted(black, "brightness", 1) == round(25.5)).all()
    mean = photo.float().mean((1, 2), keepdim=True)
    np.testing.assert_allclose(corrupted(photo, "contrast", 2), mean + 0.3 * (photo - mean), atol=0.51)


def test_jpeg_and_pixelate_are_pillows(photo: Tensor) -> None:
    image, buffer = Image.fromarray(photo.permute(1, 2, 0).numpy()), io.BytesIO()
    image.save(buffer, "JPEG", quality=15)
    assert np.array_equal(corrupted(photo, "jpeg_compression", 3).permute(1, 2, 0), np.array(Image.open(buffer)))
    small = image.resize((14, 14), Image.Resampling.BOX)
    large = np.array(small.resize((SIZE, SIZE), Image.Resampling.BOX))
    assert np.array_equal(corrupted(photo, "pixelate", 5).permute(1, 2, 0), large)


def test_filters_are_scipys() -> None:
    x = torch.rand(2, 23, 17, generator=torch.Generator().manual_seed(0))
    for deviation in (0.7, 3.0, 12.0):  # the last reaches farther than the image is wide
        expected = np.stack([ndimage.gaussian_filter(channel, deviation, mode="reflect") for channel in x.numpy()])
        np.testing.assert_allclose(_gaussian_blur(x, deviation), expected, atol=2e-4)
    kernel = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    expected = np.stack([ndimage.correlate(channel, kernel.numpy(), mode="reflect") for channel in x.numpy()])
    np.testing.assert_allclose(_convolve(x, kernel), expected, atol=1e-5)
    matrix, offset = torch.tensor([[0.8, 0.1], [-0.1, 0.7]]), torch.tensor([0.4, -0.3])
    centre = np.array([11, 8])
    start = centre + offset.numpy() - matrix.numpy() @ centre
    expected = np.stack([ndimage.affine_transform(channel, matrix.numpy(), start, order=1) for channel in x.numpy()])
    np.testing.assert_allclose(_resample(x, matrix, offset), expected, atol=1e-4)


def test_lengths_grow_with_the_size(photo: Tensor) -> None:
    """A blur twice as large on an image twice as large is the same blur."""
    image = torch.kron(photo, torch.ones(1, 2, 2, dtype=torch.uint8))
    for kind in ("defocus_blur", "zoom_blur"):
        small, large = corrupted(photo, kind, 5), corrupted(image, kind, 5)
        halved = torch.nn.functional.avg_pool2d(large, 2)
        assert (small - halved).abs().mean() < 0.25 * (small - photo).abs().mean()


def test_views_can_be_sent_to_workers() -> None:
    view = Corrupted(Centre(16, 16), "fog", 2, 3)
    assert pickle.loads(pickle.dumps(view)) == view and hash(view) == hash(Corrupted(Centre(16, 16), "fog", 2, 3))


@pytest.fixture(scope="module")
def models(tiny: Callable[..., DualEncoder]) -> dict[str, DualEncoder]:
    large: Any = {"args": {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}}
    return {"a": tiny("avg", seed=1).eval(), "b": tiny("max", seed=2, image=large).eval()}


@pytest.fixture(scope="module")
def classes(colour_set: Path) -> EvalSet:
    return open_set(SetConfig(str(colour_set)))


def test_accuracies_are_those_of_the_views(models: dict[str, DualEncoder], classes: EvalSet) -> None:
    context = Context(models, classes, CONFIG)
    found, records = corruption(context), classes.records
    labels = torch.tensor(context.labels)
    for model, each, clean in zip(models.values(), found, zeroshot(context), strict=True):
        names = embed_classes(model, classes, 4)
        cells = each.details["acc1"]
        for kind in KINDS:
            for severity in SEVERITIES:
                view = Corrupted(centre_of(model), kind, severity)
                pixels = torch.stack([view(records.image(i), group_id(records.key(i))) for i in range(16)])
                with torch.inference_mode():
                    right = (model.encode_image(pixels) @ names.T).argmax(1) == labels
                assert cells[kind][str(severity)] == right.float().mean()
        mean = np.mean([list(row.values()) for row in cells.values()])
        assert each.metrics == {"corruption_acc1": pytest.approx(mean)}
        assert each.metrics["corruption_acc1"] == pytest.approx(each.outcomes["right"].mean())
        assert each.chance == {"corruption_acc1": 0.25}
        assert each.further["corruption_clean_acc1"] == clean.metrics["acc1"]
        if clean.metrics["acc1"] > 0:
            assert each.further["corruption_relative_drop"] == pytest.approx(1 - mean / clean.metrics["acc1"])
        assert each.details["acc1_by_severity"]["5"] == np.mean([row["5"] for row in cells.values()])
        assert [row[0] for row in each.tables["acc1"]] == ["corruption", *KINDS, "mean"]
        assert each.tables["acc1"][-1][-1] == str(each.metrics["corruption_acc1"])


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"batch_size": 500}, {"workers": 2}])
def test_batches_and_workers_change_nothing(
    models: dict[str, DualEncoder], classes: EvalSet, change: dict[str, int]
) -> None:
    one, other = (corruption(Context(models, classes, config)) for config in (CONFIG, replace(CONFIG, **change)))
    for a, b in zip(one, other, strict=True):
        assert (a.metrics, a.details) == (b.metrics, b.details)
        np.testing.assert_array_equal(a.outcomes["right"], b.outcomes["right"])


def test_each_image_is_decoded_once_and_batches_stay_small(
    models: dict[str, DualEncoder], classes: EvalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = ShardRecords.image
    monkeypatch.setattr(
        ShardRecords, "image", lambda self, position: (read.append(position), original(self, position))[1]
    )
    sizes: list[int] = []
    hook = models["a"].image.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    corruption(Context(models, classes, replace(CONFIG, batch_size=30)))
    hook.remove()
    assert sorted(read) == list(range(16))
    # Two images under 7 views at each of two sizes are 28 pictures; three would be 42.
    assert sizes == [2 * 7] * 8


def test_classes_of_one_name_are_ties(models: dict[str, DualEncoder], classes: EvalSet) -> None:
    twins = classes._replace(classnames=[*classes.classnames, *classes.classnames])
    for each, once in zip(
        corruption(Context(models, twins, CONFIG)), corruption(Context(models, classes, CONFIG)), strict=True
    ):
        assert each.pessimistic["corruption_acc1"] == 0 < once.pessimistic["corruption_acc1"]
        assert once.pessimistic["corruption_acc1"] == once.metrics["corruption_acc1"]
        assert each.outcomes["tied"].all() and not once.outcomes["tied"].any()


def test_ties_that_are_lucky_count_as_wrong(models: dict[str, DualEncoder], classes: EvalSet) -> None:
    """All classes have one name, and each image is taken for the same."""
    for each in corruption(Context(models, classes._replace(classnames=["red"] * 4), CONFIG)):
        assert each.metrics["corruption_acc1"] == each.further["corruption_clean_acc1"] == 0.25
        assert each.pessimistic == {"corruption_acc1": 0, "corruption_clean_acc1": 0}


def test_the_drop_has_no_worst_value() -> None:
    """It is a ratio of two figures that ties lower both."""
    sure = np.array([[True, True], [True, False], [False, True], [True, True]])
    predictions = Predictions(np.zeros((4, 2), np.int64), ~sure)
    found = corruption_metrics(predictions, np.zeros(4, np.int64), 2, ("fog",), (1,))
    assert found.metrics == {"corruption_acc1": 1}
    assert found.further == {"corruption_clean_acc1": 1, "corruption_relative_drop": 0}
    assert found.pessimistic == {"corruption_acc1": 0.75, "corruption_clean_acc1": 0.75}


def test_classes_of_one_name_tie_in_batches_of_one(models: dict[str, DualEncoder], classes: EvalSet) -> None:
    """A product with one row adds up some columns in another order than others."""
    for each in corruption(Context(models, classes._replace(classnames=["red"] * 17), replace(CONFIG, batch_size=1))):
        assert each.outcomes["tied"].all()


def test_diverged_models_are_refused(tiny: Callable[..., DualEncoder], classes: EvalSet) -> None:
    model = tiny("avg").eval()
    with torch.no_grad():
        model.image.projection.weight.fill_(torch.nan)
    with pytest.raises(MmrepError, match="model bad: its scores on colours0 are not finite"):
        corruption(Context({"bad": model}, classes._replace(name="colours0"), CONFIG))


def test_kinds_and_severities_are_checked(models: dict[str, DualEncoder], colour_set: Path) -> None:
    with pytest.raises(ConfigError, match=r"corruption\.kinds: unknown value 'fogs'; did you mean 'fog'\?"):
        CorruptionConfig(kinds=("fogs",))
    with pytest.raises(ConfigError, match=r"corruption\.severities: 2 occurs twice"):
        CorruptionConfig(severities=(2, 2))
    captions = open_set(SetConfig(f"{colour_set}/retrieval"))
    with pytest.raises(ConfigError, match="task corruption needs images with one class each"):
        corruption(Context(models, captions, CONFIG))


def test_corrupt_takes_any_generator(photo: Tensor) -> None:
    found = [corrupt(photo, "gaussian_noise", 1, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
