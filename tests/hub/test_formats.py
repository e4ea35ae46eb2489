"""`mmrep export --format mmcap_light`: the light form of a trained mmcap (open_clip's is in tests/parity)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmrep
from mmrep.cli import main
from mmrep.config.checks import ConfigError
from mmrep.hub import export
from mmrep.hub.formats import light_from
from mmrep.model.dual_encoder import DualEncoder

Build = Callable[..., DualEncoder]
TEXTS = ["a red square", "a picture of something blue"]


def scrambled(model: DualEncoder) -> DualEncoder:
    """Values unlike the initial ones, so that one left out or taken from elsewhere is noticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("logit"):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def images(model: DualEncoder) -> torch.Tensor:
    return torch.randn(3, 3, *model.image.size, generator=torch.Generator().manual_seed(0))


def student(model: DualEncoder) -> torch.Tensor:
    """The mean token's embeddings, which training alone makes."""
    with torch.no_grad():
        return torch.nn.functional.normalize(model.train().image(images(model)).auxiliary[0], dim=-1)


POOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mmcap": ({"name": "mmcap", "args": {"stages": 1, "tokens": 3}}, {}),
    "mcap": ({"name": "mcap"}, {}),
    "mcap, heads and FFN of its own": ({"name": "mcap", "args": {"num_heads": 4, "ffn_ratio": 0.5}}, {}),
    "mmcap without stages, sigmoid": ({"name": "mmcap", "args": {"stages": 0}}, {"loss": "sigmoid"}),
    "mcap, biased projection": ({"name": "mcap"}, {"image": {"projection_bias": True}}),
}


@pytest.mark.parametrize("case", POOLS)
def test_light_model_gives_the_students_embeddings(tiny: Build, tmp_path: Path, case: str) -> None:
    pool, fields = POOLS[case]
    model = scrambled(tiny(pool, **fields))
    expected = student(model)
    folder = export(model, tmp_path / "light", format="mmcap_light")
    light = mmrep.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(light.encode_image(images(model)), expected, rtol=1e-4, atol=1e-5)
        tokens = model.tokenizer(TEXTS)
        torch.testing.assert_close(light.encode_text(tokens), model.eval().encode_text(tokens))
    assert light.config.pooling.name == "mmcap_light"
    assert torch.equal(light.logit_scale, model.logit_scale)
    assert (light.logit_bias is None) == (model.logit_bias is None)
    assert light.tokenizer.digest() == model.tokenizer.digest()


def test_light_model_is_a_smaller_copy(tiny: Build) -> None:
    model = tiny("mcap").train()
    model.precision = "bf16"
    light = light_from(model)
    assert light.training and light.precision == "bf16"
    assert sum(p.numel() for p in light.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        light.image.projection.weight.zero_()
    assert student(model).abs().sum() > 0


def test_light_model_after_training(recipe: Callable[..., Any], tmp_path: Path) -> None:
    from mmrep.training.trainer import train

    config = recipe(model={"pool": {"name": "mmcap", "args": {"stages": 1}}}, training={"steps": 2})
    run = train(config, "")
    assert main(["export", str(run), "--format", "mmcap_light", "--output_dir", str(tmp_path / "light")]) == 0
    light, model = mmrep.load(tmp_path / "light"), mmrep.load(run)
    with torch.no_grad():
        torch.testing.assert_close(light.encode_image(images(model)), student(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ("avg", "expected a model with pool 'mcap' or 'mmcap' and its distill: true.*got 'avg'"),
        ("cap", "got 'cap'"),
        ({"name": "mcap", "args": {"distill": False}}, "got 'mcap' with {'distill': False}"),
        ({"name": "mmcap_light", "args": {"stages": 1}}, "got 'mmcap_light'"),
    ],
)
def test_models_without_a_mean_token_are_refused(tiny: Build, tmp_path: Path, pool: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        export(tiny(pool), tmp_path / "light", format="mmcap_light")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_head_grafted_onto_another_is_refused_and_one_taken_over_is_not(tiny: Build) -> None:
    with pytest.raises(ConfigError, match="got 'mcap' with no args, grafted onto 'avg'"):
        light_from(tiny("mcap", pool_init="preserve", pool_base="avg"))
    light = light_from(tiny("mcap", pool_init="preserve", pool_base="mcap"))
    assert light.config.base is None


def test_unknown_formats_and_used_folders_are_refused(tiny: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="valid: open_clip, mmcap_light"):
        export(tiny("mcap"), tmp_path / "out", format="light")
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export(tiny("mcap"), tmp_path, format="mmcap_light")
