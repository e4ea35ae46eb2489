"""Every head of the registry in tiny models: class and register tokens, dropped patches, other resolutions, norm
after pooling, gradient checkpointing, saving."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_MODEL, small_pool

from mmrep.batch import Batch
from mmrep.config.checks import ConfigError
from mmrep.config.model import ImageConfig
from mmrep.config.pooling import PoolConfig
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.image_encoder import ImageEncoder
from mmrep.model.load import load, save_model
from mmrep.pooling import build_pool, list_pools

Build = Callable[..., DualEncoder]
EVERY = pytest.mark.parametrize("name", list_pools())
TOKENS: dict[str, dict[str, Any]] = {
    "class token": {},
    "registers": {"reg_tokens": 2},
    "neither": {"class_token": False},
    "registers alone": {"class_token": False, "reg_tokens": 2},
}


def encoder(name: str, trunk_args: dict[str, Any] | None = None, **fields: Any) -> ImageEncoder:
    args = TINY_MODEL["image"]["args"] | (trunk_args or {})
    config = ImageConfig(trunk=TINY_MODEL["image"]["trunk"], args=args, **fields)
    return ImageEncoder(config, PoolConfig.parse(small_pool(name)), embed_dim=16, seed=0)


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)


def assert_trains(model: ImageEncoder, kept: torch.Tensor | None = None) -> None:
    """Every parameter receives a gradient from the embeddings and the auxiliary ones."""
    pooled = model.train()(images(), kept)
    towards = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    sum((F.normalize(x, dim=1) * towards).sum() for x in (pooled.embedding, *pooled.auxiliary)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@EVERY
@pytest.mark.parametrize("kind", TOKENS)
def test_with_and_without_class_and_register_tokens(name: str, kind: str) -> None:
    if build_pool(name, dim=4, num_heads=2).needs_class_token and "class_token" in TOKENS[kind]:
        with pytest.raises(ConfigError, match=f"'{name}' needs a class token"):
            encoder(name, TOKENS[kind])
        return
    model = encoder(name, TOKENS[kind])
    tokens = model.tokens(images())
    assert tokens.prefix.shape[1] == ("class_token" not in TOKENS[kind]) + TOKENS[kind].get("reg_tokens", 0)
    assert {part.shape[1] for part in (tokens.patches, *tokens.stages)} == {16}
    assert_trains(model)


@EVERY
def test_with_dropped_patches_unless_the_head_needs_the_grid(name: str) -> None:
    if build_pool(name, dim=4, num_heads=2).needs_grid:
        with pytest.raises(ConfigError, match=f"'{name}' needs the whole patch grid: set model.image.patch_dropout"):
            encoder(name, patch_dropout=0.5)
        return
    model = encoder(name, patch_dropout=0.5)
    kept = torch.tensor([[0, 3, 5, 6, 9, 12, 14, 15], [1, 2, 3, 4, 5, 6, 7, 8]])
    assert_trains(model, kept)
    with torch.no_grad():
        whole, part = model.eval()(images()).embedding, model(images(), kept).embedding
    assert part.isfinite().all()
    assert not torch.allclose(whole, part, atol=1e-4)


@EVERY
def test_at_another_resolution_than_built_for(name: str) -> None:
    fixed, dynamic = encoder(name).eval(), encoder(name, {"dynamic_img_size": True}).eval()
    with torch.no_grad():
        own = fixed(images()).embedding
        torch.testing.assert_close(dynamic(images()).embedding, own)
        for size in ((32, 32), (8, 24), (4, 4)):
            other = dynamic(images(*size)).embedding
            assert other.shape == own.shape and other.isfinite().all()


@EVERY
def test_norm_after_pooling_where_widths_agree(name: str) -> None:
    if build_pool(name, dim=4, num_heads=2).out_dim != 4:
        with pytest.raises(ConfigError, match=f"'after' needs a head as wide as the trunk .* '{name}' has width"):
            encoder(name, norm="after")
        return
    model = encoder(name, norm="after")
    assert_trains(model)
    with torch.no_grad():
        pooled = model.pool(model.tokens(images())).embedding
        torch.testing.assert_close(model(images()).embedding, model.projection(model.norm(pooled)))


@pytest.mark.parametrize("name", ["rgem", "mmcap"])
def test_grad_checkpointing_gives_the_same_gradients(tiny: Build, name: str) -> None:
    gradients = []
    for enable in (False, True):
        model = tiny(small_pool(name)).train()
        model.set_grad_checkpointing(enable)
        tokens, lengths = model.tokenizer.batch(["a cat", "a dog"])
        numbers = torch.arange(2)
        output = model(Batch(images(), tokens, lengths, numbers, numbers, numbers))
        sum((made * output.text.flip(0)).sum() for made in (output.image, *output.auxiliary)).backward()
        gradients.append({label: parameter.grad for label, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for label, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][label], gradient)


@EVERY
def test_saved_and_loaded_models_embed_alike(tiny: Build, name: str, tmp_path: Path) -> None:
    model = tiny(small_pool(name), seed=3)
    save_model(model, tmp_path)
    again = load(tmp_path)
    assert again.config.pool == model.config.pool
    for training in (True, False):
        with torch.no_grad():
            ours, theirs = (each.train(training).image(images()) for each in (model, again))
        for a, b in zip((ours.embedding, *ours.auxiliary), (theirs.embedding, *theirs.auxiliary), strict=True):
            assert torch.equal(a, b)
