"""Embeddings at several scales: each model at its own sizes, every image decoded once, the maximum as written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.config.checks import MmrepError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.data.transforms import resize_center
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.multiscale import multiscale_images, scaled_size
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.records import ShardRecords
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.resolution import at_resolution

CONFIG = EvaluationConfig(batch_size=5, workers=0)
SCALES = (0.7071, 1.0, 1.4142)


@pytest.fixture(scope="module")
def models(tiny: Callable[..., DualEncoder]) -> dict[str, DualEncoder]:
    wide: Any = {"img_size": (16, 24), "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return {"cls": tiny("cls", seed=1).eval(), "wide": tiny("avg", seed=2, image={"args": wide}).eval()}


@pytest.fixture(scope="module")
def evalset(colour_set: Path) -> EvalSet:
    return open_set(SetConfig(str(colour_set)))


def by_hand(model: DualEncoder, evalset: EvalSet, sizes: list[tuple[int, int]]) -> Tensor:
    with torch.inference_mode():
        found = []
        for size in sizes:
            pixels = torch.stack([resize_center(evalset.records.image(i), size) for i in range(16)])
            found.append(F.normalize(at_resolution(model, size).eval().encode_image(pixels, normalize=False), dim=-1))
        return F.normalize(torch.stack(found).amax(0), dim=-1)


def test_sizes_are_multiples_of_the_patch(models: dict[str, DualEncoder]) -> None:
    # 16 × 0.7071 = 11.3 and 16 × 1.4142 = 22.6 pixels with patches of 4.
    assert [scaled_size(models["cls"], scale) for scale in (*SCALES, 0.01)] == [(12, 12), (16, 16), (24, 24), (4, 4)]
    assert [scaled_size(models["wide"], scale) for scale in SCALES] == [(8, 16), (16, 24), (24, 32)]


def test_the_maximum_over_scales(models: dict[str, DualEncoder], evalset: EvalSet) -> None:
    cls, wide = multiscale_images(Context(models, evalset, CONFIG), SCALES)
    expected = by_hand(models["cls"], evalset, [(12, 12), (16, 16), (24, 24)])
    torch.testing.assert_close(cls, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(wide, by_hand(models["wide"], evalset, [(8, 16), (16, 24), (24, 32)]), rtol=0, atol=1e-5)
    torch.testing.assert_close(cls.norm(dim=1), torch.ones(16))
    assert (cls - by_hand(models["cls"], evalset, [(16, 16)])).abs().max() > 1e-4


def test_every_image_is_decoded_once(
    models: dict[str, DualEncoder], evalset: EvalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    image = ShardRecords.image
    monkeypatch.setattr(ShardRecords, "image", lambda self, position: (read.append(position), image(self, position))[1])
    multiscale_images(Context(models, evalset, CONFIG), SCALES)
    assert sorted(read) == list(range(16))


def test_one_scale_is_the_models_own(models: dict[str, DualEncoder], evalset: EvalSet) -> None:
    context = Context(models, evalset, CONFIG)
    assert multiscale_images(context, (1.0,)) is context.images
    assert multiscale_images(context, (1.0, 1.01)) is context.images


def test_models_are_left_as_they_were(models: dict[str, DualEncoder], evalset: EvalSet) -> None:
    before = {name: value.clone() for name, value in models["cls"].state_dict().items()}
    multiscale_images(Context(models, evalset, CONFIG), SCALES)
    assert models["cls"].image.size == (16, 16)
    assert all(value.equal(before[name]) for name, value in models["cls"].state_dict().items())


def test_embeddings_that_are_not_finite(tiny: Callable[..., DualEncoder], evalset: EvalSet) -> None:
    model = tiny("avg").eval()
    with torch.no_grad():
        next(model.image.parameters()).fill_(torch.nan)
    with pytest.raises(MmrepError, match=r"model bad: its embeddings on colours\w* at scales 1.0, 2.0 are not finite"):
        multiscale_images(Context({"bad": model}, evalset, CONFIG), (1.0, 2.0))
