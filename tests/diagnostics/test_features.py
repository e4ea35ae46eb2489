"""Variance over depth and dead units, on activations made by hand and on a trunk walked by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.features import DeadUnitMeter, DeadUnits, Variance, VarianceMeter, token_variance, watch
from mmrep.model.dual_encoder import DualEncoder

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("avg", seed=1).eval()


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def variance(model: DualEncoder, *batches: Tensor) -> Variance:
    meter = VarianceMeter(model)
    watch(model, batches, [meter])
    return meter.result()


def dead(model: DualEncoder, *batches: Tensor) -> DeadUnits:
    meter = DeadUnitMeter(model)
    watch(model, batches, [meter])
    return meter.result()


def test_white_noise_has_its_variance_in_space_and_channels() -> None:
    noise = 3 * torch.randn(16, 256, 128, generator=torch.Generator().manual_seed(0))
    assert token_variance(noise) == pytest.approx((9, 9, 9), rel=0.01)


def test_patches_all_alike_and_channels_all_alike() -> None:
    row = torch.tensor([1.0, 2.0, 6.0])
    assert token_variance(row.expand(2, 5, 3)) == pytest.approx((0, 7, 41 / 3))
    assert token_variance(row.view(1, 3, 1).expand(2, 3, 5)) == pytest.approx((7, 0, 41 / 3))


def by_hand(model: DualEncoder, images: Tensor) -> list[Tensor]:
    """The residual stream at every point."""
    trunk, encoder = model.image.trunk, model.image
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed((images - encoder.mean) / encoder.std)))
    stream = [x]
    for block in trunk.blocks:
        x = x + block.attn(block.norm1(x))
        stream.append(x)
        x = x + block.mlp(block.norm2(x))
        stream.append(x)
    return stream


@torch.no_grad()
def test_every_half_block_of_a_trunk(model: DualEncoder) -> None:
    found, stream = variance(model, pixels(5)), by_hand(model, pixels(5))
    assert found.points == ["embedding", "block 0 attention", "block 0 mlp", "block 1 attention", "block 1 mlp"]
    assert len(stream) == len(found.points)
    for i, x in enumerate(stream):
        patches = x[:, 1:].double()
        spatial, channel = patches.var(1).mean().item(), patches.var(2).mean().item()
        square = patches.square().mean().item()
        got = (found.spatial[i], found.channel[i], found.spatial_share[i], found.channel_share[i])
        assert got == pytest.approx((spatial, channel, spatial / square, channel / square), rel=1e-4)
    assert len(set(found.spatial)) == len(stream)


def test_batches_of_any_size_give_the_same(model: DualEncoder) -> None:
    images = pixels(6)
    whole, parts = variance(model, images), variance(model, images[:1], images[1:])
    for one, other in zip(whole[1:], parts[1:], strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_shares_do_not_change_with_the_scale_and_the_class_token_does_not_count(model: DualEncoder) -> None:
    trunk = model.image.trunk
    trunk.norm_pre = nn.Identity()
    with torch.no_grad():
        for block in trunk.blocks:
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.zero_()
                last.bias.zero_()
    before = variance(model, pixels(3))
    # Blocks that add nothing leave the embedding's variance as it is.
    assert before.spatial == pytest.approx([before.spatial[0]] * 5)
    with torch.no_grad():
        for name, parameter in trunk.named_parameters():
            if name.startswith(("patch_embed", "pos_embed")):
                parameter.mul_(4)
        trunk.cls_token.fill_(1e4)
    after = variance(model, pixels(3))
    assert after.spatial == pytest.approx([16 * value for value in before.spatial], rel=1e-4)
    assert after.spatial_share == pytest.approx(before.spatial_share, rel=1e-4)
    assert after.channel_share == pytest.approx(before.channel_share, rel=1e-4)


def hooks(model: DualEncoder) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_gone_afterwards_whatever_happens(model: DualEncoder) -> None:
    meters = [VarianceMeter(model), DeadUnitMeter(model)]
    before = hooks(model)
    watch(model, [pixels(2)], meters)
    with pytest.raises(ValueError, match="expected images of shape"):
        watch(model, [pixels(2)[:, :, :8]], meters)
    assert hooks(model) == before


@pytest.mark.parametrize(("kind", "args"), [("GluMlp", {}), ("SwiGLU", {"scale_mlp": True})])
def test_eva_trunks_with_rotary_embeddings_and_gated_mlps(
    tiny: Callable[..., DualEncoder], kind: str, args: dict[str, Any]
) -> None:
    model = tiny("avg", seed=1, image={"trunk": "eva02_tiny_patch14_224", "args": {**ARGS, **args}}).eval()
    found, units = variance(model, pixels(4)), dead(model, pixels(4))
    with torch.inference_mode():
        model.image.norm = nn.Identity()
        last = model.image.tokens(pixels(4)).patches
    assert (found.spatial[-1], found.channel[-1]) == pytest.approx(token_variance(last)[:2], rel=1e-4)
    assert len(found.points) == 5 and found.spatial[1] != found.spatial[2]
    mlps = [block.mlp for block in model.image.trunk.blocks]
    assert [type(mlp).__name__ for mlp in mlps] == [kind] * 2
    assert units.units == [mlp.fc2.in_features for mlp in mlps]
    assert all(0.2 < share < 0.8 for share in units.off_share)


def bias_by_hand(model: DualEncoder, block: int, off: int) -> None:
    bias = model.image.trunk.blocks[block].mlp.fc1.bias
    with torch.no_grad():
        bias.fill_(1e9)
        bias[:off] = -1e9


def test_units_with_very_large_biases_are_off_or_on(model: DualEncoder) -> None:
    bias_by_hand(model, 0, 32)
    bias_by_hand(model, 1, 0)
    found = dead(model, pixels(3), pixels(2))
    expected = DeadUnits([0.25, 0.0], [32, 0], [128, 128], 5 * 17, 0.125, 0.125)
    assert found == expected


def test_a_unit_that_is_on_once_is_not_dead(model: DualEncoder) -> None:
    bias_by_hand(model, 0, 128)
    bias_by_hand(model, 1, 128)
    mlp, seen = model.image.trunk.blocks[0].mlp, []
    with torch.no_grad():
        mlp.fc1.bias[7] = 0
        hook = mlp.act.register_forward_pre_hook(lambda _, args: seen.append(args[0][..., 7].flatten()))
        model.image.tokens(pixels(5))
        hook.remove()
        first, second = torch.cat(seen).sort(descending=True).values[:2]
        mlp.fc1.bias[7] = -(first + second) / 2
    found = dead(model, pixels(5)[:2], pixels(5)[2:])
    assert found.dead == [127, 128]
    assert found.off_share[0] == pytest.approx(1 - 1 / (5 * 17 * 128), abs=1e-9)


@pytest.mark.parametrize(
    ("meter", "message"),
    [(VarianceMeter, "block 1 of the trunk is a Identity"), (DeadUnitMeter, "got NoneType")],
)
def test_blocks_of_unknown_make_are_refused(model: DualEncoder, meter: Callable[..., Any], message: str) -> None:
    model.image.trunk.blocks[1] = nn.Identity()
    with pytest.raises(ConfigError, match=message) as error:
        meter(model)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("meter", [VarianceMeter, DeadUnitMeter])
def test_no_images_are_an_error(model: DualEncoder, meter: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="no images"):
        meter(model).result()


def test_a_single_patch_has_no_spatial_variance(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg", image={"args": {"img_size": 8, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}})
    with pytest.raises(ConfigError, match="at least 2 patches"):
        VarianceMeter(model)
