"""Dual encoders: initial values, norm placement, trunks that fit or not, patch dropout, precision, text cutting."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_pool

from mmrep.batch import Batch
from mmrep.config.checks import ConfigError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling import list_pools

Build = Callable[..., DualEncoder]
TEXTS = ["a cat", "two dogs run over a green lawn in the rain", "!"]


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def batch(model: DualEncoder, kept: torch.Tensor | None = None) -> Batch:
    tokens, lengths = model.tokenizer.batch(TEXTS[:2])
    numbers = torch.arange(2)
    return Batch(images(), tokens, lengths, numbers, numbers, numbers, kept)


@pytest.mark.parametrize("pool", list_pools())
def test_every_head_trains_in_a_model(tiny: Build, pool: str) -> None:
    model = tiny(small_pool(pool))
    output = model(batch(model))
    torch.testing.assert_close(output.image.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(output.text.norm(dim=1), torch.ones(2))
    sum((image * output.text.flip(0)).sum() for image in (output.image, *output.auxiliary)).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name for name, _ in model.named_parameters()} - trained <= {"logit_scale"}


def test_models_of_one_seed_start_equal_wherever_they_share_a_parameter(tiny: Build) -> None:
    first = dict(tiny("cls", seed=3).named_parameters())
    for other in (tiny("ggem", seed=3), tiny("map", seed=3), tiny("avg", seed=3, image={"args": {
        "img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 2}})):  # fmt: skip
        shared = [(n, p) for n, p in other.named_parameters() if n in first and first[n].shape == p.shape]
        assert len(shared) > 30
        for name, parameter in shared:
            assert torch.equal(parameter, first[name]), name


def test_another_seed_starts_elsewhere(tiny: Build) -> None:
    a, b = dict(tiny(seed=0).named_parameters()), dict(tiny(seed=1).named_parameters())
    matrices = [name for name, p in a.items() if p.ndim >= 2]
    assert all(not torch.equal(a[name], b[name]) for name in matrices)


def test_building_leaves_the_global_generator_alone(tiny: Build) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny()
    assert torch.equal(torch.rand(1), expected)


def test_norm_before_and_after(tiny: Build) -> None:
    before, after = tiny("avg").eval(), tiny("avg", image={"norm": "after"}).eval()
    with torch.no_grad():
        for model in (before, after):
            model.image.norm.weight.normal_(1, 0.5, generator=torch.Generator().manual_seed(1))
        x = before.image.tokens(images())
        raw = after.image.tokens(images())
        torch.testing.assert_close(before.image.norm(raw.patches), x.patches)
        expected = after.image.projection(after.image.norm(raw.patches.mean(1)))
        torch.testing.assert_close(after.image(images()).embedding, expected)
        assert not torch.allclose(after.image(images()).embedding, before.image(images()).embedding, atol=1e-3)


def test_uint8_and_preprocessed_floats_agree(tiny: Build) -> None:
    from PIL import Image

    model = tiny().eval()
    pixels = images(1)
    floats = model.preprocess(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()))[None]
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(pixels), model.encode_image(floats), atol=1e-6, rtol=1e-5)


def test_dropped_patches_keep_their_positions(tiny: Build) -> None:
    model = tiny("avg").eval()
    everything = torch.arange(16).expand(2, -1)
    with torch.no_grad():
        whole = model(batch(model)).image
        torch.testing.assert_close(model(batch(model, everything)).image, whole)
        kept = torch.tensor([[0, 5, 6, 15], [1, 2, 3, 4]])
        tokens = model.image.tokens(images(), kept)
        assert tokens.patches.shape == (2, 4, 32)
        assert tokens.index is kept
        assert not torch.allclose(model(batch(model, kept)).image, whole, atol=1e-4)


def test_grad_checkpointing_gives_the_same_gradients(tiny: Build) -> None:
    gradients = []
    for enable in (False, True):
        model = tiny("ggem")
        model.set_grad_checkpointing(enable)
        output = model(batch(model))
        (output.image * output.text.flip(0)).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_bf16_is_close_and_returns_fp32(tiny: Build) -> None:
    model = tiny("ggem").eval()
    with torch.no_grad():
        exact = model(batch(model))
        model.precision = "bf16"
        rough = model(batch(model))
        assert rough.image.dtype == rough.text.dtype == torch.float32
        assert not torch.equal(rough.image, exact.image)
        torch.testing.assert_close(rough.image, exact.image, atol=0.03, rtol=0)
        torch.testing.assert_close(model.encode_image(images()), rough.image)


def test_text_cut_to_the_longest_is_exact(tiny: Build) -> None:
    model = tiny(text={"context_length": 77}).eval()
    cut, lengths = model.tokenizer.batch(TEXTS)
    whole = model.tokenizer(TEXTS)
    assert lengths.tolist() == [4, 12, 3]
    assert cut.shape == (3, 16) and whole.shape == (3, 77)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(cut), model.encode_text(whole), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "args", [{"pool_type": "last"}, {"no_causal_mask": True, "pool_type": "last"}, {"embed_cls": True}]
)
def test_towers_that_can_not_be_cut_are_not(tiny: Build, args: dict[str, Any]) -> None:
    model = tiny(text={"args": args})
    assert model.tokenizer.batch(["a cat"])[0].shape == (1, 16)
    assert model.encode_text(model.tokenizer(["a cat"])).shape == (1, 16)
    with pytest.raises(ValueError, match="texts of 16 tokens, got 8"):
        model.encode_text(model.tokenizer(["a cat"])[:, :8])


def test_images_of_another_size_are_refused(tiny: Build) -> None:
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 3, 16, 16\), got \(2, 3, 32, 32\)"):
        tiny().encode_image(images(size=32))


@pytest.mark.parametrize(
    ("trunk", "args"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("vit_base_patch16_siglip_224", {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("deit3_small_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("vit_base_patch16_gap_224", {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "embed_dim": 48, "depth": 1, "num_heads": 3}),
        ("beit_base_patch16_224", {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3}),
    ],
)
def test_trunks_that_fit(tiny: Build, trunk: str, args: dict[str, Any]) -> None:
    model = tiny("avg", image={"trunk": trunk, "args": args})
    height, width = model.image.size
    tokens = model.image.tokens(torch.zeros(1, 3, height, width))
    assert tokens.patches.shape == (1, model.image.patches, 48)
    assert tokens.prefix.shape == (1, model.image.prefix, 48)
    rms = tokens.patches.detach().square().mean(-1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), atol=1e-2, rtol=0)


@pytest.mark.parametrize("trunk", ["resnet18", "swin_tiny_patch4_window7_224", "maxvit_nano_rw_256", "levit_128s"])
def test_trunks_that_do_not_fit_are_refused_by_name(tiny: Build, trunk: str) -> None:
    with pytest.raises(ConfigError, match=f"'{trunk}'.* does not fit"):
        tiny("avg", image={"trunk": trunk, "args": {}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image": {"trunk": "vit_base_patch16_clip_225"}}, "did you mean 'vit_base_patch16_clip_224'"),
        ({"image": {"args": {"img_sise": 16}}}, "img_sise"),
        ({"pool": {"name": "ggem", "args": {"groups": 5}}}, "groups must divide the trunk's width 32, got 5"),
        (
            {"image": {"trunk": "vit_base_patch16_siglip_224", "args": {"img_size": 32, "depth": 1}}},
            "needs a class token",
        ),
        ({"text": {"args": {"pooling": "x"}}}, "model.text.args.*pooling"),
        ({"image": {"nrom": "after"}}, "model.image: unknown field 'nrom'"),
    ],
)
def test_wrong_parts_are_one_clear_line(tiny: Build, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        tiny(**{"pool": "cls", **fields})
    assert "\n" not in str(caught.value)


def test_logit_scale_is_clamped(tiny: Build) -> None:
    model = tiny()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    model.clamp_logit_scale(100)
    assert model.logit_scale.exp().item() == pytest.approx(100)


def test_no_parameter_is_without_dimensions(tiny: Build) -> None:
    assert all(p.ndim > 0 for p in tiny("ggem", loss="sigmoid").parameters())
