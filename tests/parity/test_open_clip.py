"""Ours against open_clip: weights loaded from it, models exported to it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL

import mmrep
from mmrep.config.checks import ConfigError
from mmrep.hub import export
from mmrep.model.convert import load_open_clip_state_dict
from mmrep.model.dual_encoder import DualEncoder

open_clip = pytest.importorskip("open_clip")

Build = Callable[..., DualEncoder]
TEXTS = ["a photo of a cat", "two dogs on a lawn, one of them asleep"]
TIMM = {"trunk": "vit_tiny_patch16_224", "args": {}}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level("ERROR"):
        yield


def compare(ours: DualEncoder, theirs: torch.nn.Module) -> None:
    size = ours.image.size
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    whole, (cut, _) = ours.tokenizer(TEXTS), ours.tokenizer.batch(TEXTS)
    with torch.inference_mode():
        for normalize in (True, False):
            torch.testing.assert_close(
                ours.encode_image(images, normalize), theirs.encode_image(images, normalize), atol=1e-5, rtol=1e-5
            )
            torch.testing.assert_close(
                ours.encode_text(cut, normalize), theirs.encode_text(whole, normalize), atol=1e-5, rtol=1e-5
            )
        torch.testing.assert_close(ours.logit_scale.exp()[0], theirs.logit_scale.exp())


def scramble(model: torch.nn.Module) -> None:
    """Values unlike the initial ones, so that a norm or bias left out is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and name not in ("logit_scale", "logit_bias"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_open_clip_weights_give_open_clip_embeddings() -> None:
    theirs = open_clip.create_model("ViT-B-32").eval()
    scramble(theirs)
    ours = mmrep.create_model("ViT-B-32", pool="cls").eval()
    load_open_clip_state_dict(ours, theirs.state_dict())
    compare(ours, theirs)


def test_weights_of_another_architecture_are_refused(tiny: Build) -> None:
    ours = tiny()
    state = tiny(image={"args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}})
    from mmrep.model.convert import to_open_clip

    with pytest.raises(ConfigError, match="has no place in this model"):
        load_open_clip_state_dict(ours, to_open_clip(state)[1])
    short = to_open_clip(ours)[1]
    short.pop("visual.ln_post.weight")
    with pytest.raises(ConfigError, match="nothing for 'image.norm.weight'"):
        load_open_clip_state_dict(ours, short)


EXPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "native cls": ("cls", {}),
    "native cls, norm after": ("cls", {"image": {"norm": "after"}}),
    "native cls, quick GELU": (
        "cls",
        {
            "image": {"args": {**TINY_MODEL["image"]["args"], "act_layer": "quick_gelu"}},
            "text": {"args": {"quick_gelu": True}},
        },
    ),
    "native avg": ("avg", {}),
    "native avg, norm after": ("avg", {"image": {"norm": "after"}}),
    "native cls, sigmoid": ("cls", {"loss": "sigmoid"}),
    "timm cls": ("cls", {"image": TIMM}),
    "timm avg, linear": ("avg", {"image": TIMM}),
    "timm avg, norm after": ("avg", {"image": {**TIMM, "norm": "after"}}),
    "timm map": ("map", {"image": TIMM}),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_export_loads_in_open_clip_and_back(tiny: Build, tmp_path: Path, case: str) -> None:
    pool, fields = EXPORTED[case]
    ours = tiny(pool, **fields).eval()
    scramble(ours)
    folder = export(ours, tmp_path / "exported")
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert tuple(preprocess.transforms[-1].mean) == pytest.approx(ours.config.image.mean)
    compare(ours, theirs.eval())
    if case != "native cls, sigmoid":
        assert theirs.logit_bias is None
    again = mmrep.load(folder)
    assert again.config.pooling.name == pool
    compare(again, theirs)


@pytest.mark.parametrize(
    ("pool", "fields", "message"),
    [
        ("cls", {"text": {"args": {"quick_gelu": True}}}, "both towers have one activation"),
        ("ggem", {}, "it pools by cls or avg only, not ggem.*it has no pool 'ggem'"),
        ("max", {"image": TIMM}, "it has no pool 'max'"),
        ("map", {}, "it takes no trunk arguments"),
        ("map", {"image": {**TIMM, "norm": "after"}}, "it has no pool 'map' with norm 'after'"),
        ("cls", {"image": {**TIMM, "args": {"img_size": 64}}}, "native image size"),
        ("avg", {"image": {"projection": False}, "embed_dim": 32}, "it has a projection"),
    ],
)
def test_what_open_clip_can_not_express_is_refused_by_name(
    tiny: Build, tmp_path: Path, pool: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(tiny(pool, **fields), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_export_never_overwrites(tiny: Build, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export(tiny(), tmp_path)
