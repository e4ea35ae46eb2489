"""Models at other sizes: the same as a trunk that interpolates by itself, and the model itself left alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import load, save_model
from mmrep.model.resolution import at_resolution

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def pixels(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, rows, columns), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def embed(model: DualEncoder, size: tuple[int, int]) -> Tensor:
    return model.encode_image(pixels(*size))


@pytest.fixture
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("ggem", seed=1).eval()


@pytest.mark.parametrize("trunk", ["vit_base_patch16_clip_224", "eva02_tiny_patch14_224"])
@pytest.mark.parametrize("size", [(24, 24), (8, 20), (16, 16)])
def test_the_same_as_a_trunk_that_interpolates_by_itself(
    tiny: Callable[..., DualEncoder], trunk: str, size: tuple[int, int]
) -> None:
    fixed = tiny("ggem", seed=1, image={"trunk": trunk, "args": ARGS}).eval()
    dynamic = tiny("ggem", seed=1, image={"trunk": trunk, "args": {**ARGS, "dynamic_img_size": True}}).eval()
    dynamic.load_state_dict(fixed.state_dict())
    other = at_resolution(fixed, size)
    assert (other.image.size, other.image.grid) == (size, (size[0] // 4, size[1] // 4))
    torch.testing.assert_close(embed(other, size), embed(dynamic, size), rtol=0, atol=1e-5)


def test_the_model_itself_is_left_as_it_is(model: DualEncoder) -> None:
    before, state = embed(model, (16, 16)), {name: value.clone() for name, value in model.state_dict().items()}
    other = at_resolution(model, 32)
    with torch.no_grad():
        for parameter in other.image.parameters():
            parameter.zero_()
    assert model.image.size == (16, 16) and model.config.image.args["img_size"] == 16
    assert torch.equal(embed(model, (16, 16)), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert other.text is model.text and other.tokenizer is model.tokenizer
    assert not other.training


def test_a_resized_model_is_saved_and_loaded(model: DualEncoder, tmp_path: Path) -> None:
    other = at_resolution(model, (24, 16))
    save_model(other, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.image.size == (24, 16)
    torch.testing.assert_close(embed(loaded, (24, 16)), embed(other, (24, 16)), rtol=0, atol=1e-6)


def test_sizes_and_trunks_that_do_not_fit(model: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"images of \(18, 18\): expected multiples of the patch size \(4, 4\)"):
        at_resolution(model, 18)
    with pytest.raises(ConfigError, match="expected multiples"):
        at_resolution(model, 0)
    monkeypatch.delattr(type(model.image.trunk), "set_input_size")
    with pytest.raises(ConfigError, match="a VisionTransformer can't be resized"):
        at_resolution(model, 32)
