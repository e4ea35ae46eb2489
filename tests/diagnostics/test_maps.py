"""Patch weights against what is worked out by hand: linear heads, power means, finite differences for the others."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.maps import patch_weights
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling import list_pools

ARGS: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
POSITIVE = ["relu_avg", "gem", "ggem", "max"]


def pixels(count: int = 3, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 16, width), dtype=torch.uint8, generator=generator)


def tokens(model: DualEncoder, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.image.tokens(images).patches


def test_the_mean_is_linear_and_its_weights_are_exact(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg", image={"args": {**ARGS, "img_size": (16, 24)}}).eval()
    images = pixels(width=24)
    found = patch_weights(model, images)
    parts = tokens(model, images) @ model.image.projection.weight.detach().T / 24
    embedding = parts.sum(1)
    expected = (parts * embedding[:, None]).sum(2) / embedding.square().sum(1, keepdim=True)
    assert found.shape == (3, 4, 6)
    torch.testing.assert_close(found, expected.view(3, 4, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3), rtol=0, atol=1e-5)
    assert found.std() > 0.005


def test_the_class_token_leaves_no_weight_to_patches(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("cls").eval().requires_grad_(False)
    assert torch.equal(patch_weights(model, pixels()), torch.zeros(3, 4, 4))


@pytest.mark.parametrize("pool", POSITIVE)
def test_power_means_of_positive_tokens_share_out_the_whole_embedding(
    tiny: Callable[..., DualEncoder], pool: str
) -> None:
    model = tiny(pool).eval()
    with torch.no_grad():
        model.image.norm.bias.fill_(5.0)
    assert tokens(model, pixels()).min() > 0
    torch.testing.assert_close(patch_weights(model, pixels()).sum((1, 2)), torch.ones(3), rtol=0, atol=1e-4)


def test_a_power_mean_gives_patches_the_weight_of_their_powers(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny({"name": "gem", "args": {"p": 4.0}}).eval()
    with torch.no_grad():
        model.image.norm.bias.fill_(5.0)
    x = tokens(model, pixels()).double()
    pooled = x.pow(4).mean(1).pow(1 / 4)
    # ∂y/∂x_n · x_n = y · x_n^p / Σ_m x_m^p, channel by channel.
    parts = (pooled[:, None] * x.pow(4) / x.pow(4).sum(1, keepdim=True)) @ model.image.projection.weight.double().T
    embedding = parts.sum(1)
    expected = (parts * embedding[:, None]).sum(2) / embedding.square().sum(1, keepdim=True)
    torch.testing.assert_close(patch_weights(model, pixels()).flatten(1), expected.float(), rtol=1e-3, atol=1e-5)


def test_the_maximum_gives_all_weight_of_a_channel_to_one_patch(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("max").eval()
    x, weight = tokens(model, pixels()), model.image.projection.weight.detach()
    top = x.argmax(1)
    expected = torch.zeros(3, 16)
    for image in range(3):
        embedding = weight @ x[image].amax(0)
        for channel in range(32):
            share = x[image, top[image, channel], channel] * (weight[:, channel] @ embedding)
            expected[image, top[image, channel]] += share / embedding.square().sum()
    torch.testing.assert_close(patch_weights(model, pixels()).flatten(1), expected, rtol=0, atol=1e-5)


def test_a_norm_after_pooling_is_linear_at_its_own_statistics(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg", image={"norm": "after"}).eval()
    with torch.no_grad():
        model.image.norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    x = tokens(model, pixels())
    pooled = x.mean(1)
    spread = (pooled.var(1, correction=0) + model.image.norm.eps).sqrt()
    parts = (x - x.mean(2, keepdim=True)) / 16 / spread[:, None, None] * model.image.norm.weight.detach()
    parts = parts @ model.image.projection.weight.detach().T
    embedding = parts.sum(1)
    with torch.no_grad():
        torch.testing.assert_close(embedding, model.encode_image(pixels(), normalize=False), rtol=0, atol=1e-4)
    expected = (parts * embedding[:, None]).sum(2) / embedding.square().sum(1, keepdim=True)
    torch.testing.assert_close(patch_weights(model, pixels()).flatten(1), expected, rtol=0, atol=1e-5)


def test_toward_a_text_the_weights_add_up_to_the_cosine(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg").eval()
    texts = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        images = model.encode_image(pixels())
    cosines = (images * F.normalize(texts, dim=1)).sum(1)
    torch.testing.assert_close(patch_weights(model, pixels(), texts).sum((1, 2)), cosines, rtol=0, atol=1e-5)
    one = patch_weights(model, pixels(), texts[0])
    torch.testing.assert_close(one.sum((1, 2)), images @ F.normalize(texts[0], dim=0), rtol=0, atol=1e-5)


def test_what_a_bias_adds_belongs_to_no_patch(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg", image={"projection_bias": True}).eval()
    bias = model.image.projection.bias
    with torch.no_grad():
        bias.normal_(generator=torch.Generator().manual_seed(3))
        embedding = model.encode_image(pixels(), normalize=False)
        expected = 1 - (embedding @ bias) / embedding.square().sum(1)
    torch.testing.assert_close(patch_weights(model, pixels()).sum((1, 2)), expected, rtol=0, atol=1e-5)


class _FrozenNorm(nn.Module):
    """A LayerNorm that divides by what it divided by when it was called first in a pass, and so on."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm, self.scales, self.calls = norm, [], 0

    def forward(self, x: Tensor) -> Tensor:
        if self.calls == len(self.scales):
            self.scales.append((x.var(-1, correction=0, keepdim=True) + self.norm.eps).sqrt())
        scale, self.calls = self.scales[self.calls], self.calls + 1
        return (x - x.mean(-1, keepdim=True)) / scale * self.norm.weight + self.norm.bias


def frozen(head: nn.Module) -> list[_FrozenNorm]:
    """Puts frozen norms in the place of a head's norms."""
    norms = []
    for parent in list(head.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.LayerNorm):
                setattr(parent, name, _FrozenNorm(child))
                norms.append(getattr(parent, name))
    return norms


@pytest.mark.parametrize("pool", list_pools())
def test_every_head_agrees_with_finite_differences(tiny: Callable[..., DualEncoder], pool: str) -> None:
    model = tiny(pool, image={"args": {**ARGS, "depth": 4}}).double().eval()
    found = patch_weights(model, pixels(2)).flatten(1).double()
    head, norms = model.image.pool, frozen(model.image.pool)

    def embedding(patch: int, t: float) -> Tensor:
        """Of tokens one patch of which is multiplied by 1 + t, in all stages."""
        factor = torch.ones(16, 1, dtype=torch.float64)
        factor[patch] += t
        for norm in norms:
            norm.calls = 0
        stages = tuple(stage * factor for stage in tokens.stages)
        return model.image.projection(head(tokens._replace(patches=tokens.patches * factor, stages=stages)).embedding)

    with torch.no_grad():
        tokens = model.image.tokens(pixels(2))
        base, step = embedding(0, 0.0), 1e-6
        for patch in (0, 7):
            slope = (embedding(patch, step) - embedding(patch, -step)) / (2 * step)
            expected = (slope * base).sum(1) / base.square().sum(1)
            torch.testing.assert_close(found[:, patch], expected, rtol=1e-4, atol=1e-6)
    assert pool == "cls" or found.abs().sum() > 0.1


def test_norms_are_as_before_afterwards(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("cap", image={"norm": "after"}).eval()
    patch_weights(model, pixels())
    assert not any(module._forward_hooks for module in model.modules())


def test_in_inference_mode_and_without_traces(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("ggem").eval()
    outside = patch_weights(model, pixels())
    with torch.inference_mode():
        inside = patch_weights(model, pixels())
    assert torch.equal(outside, inside)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_norm_after_pooling_is_refused(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg", image={"norm": "after"}).eval()
    model.image.norm = nn.RMSNorm(32)
    with pytest.raises(ConfigError, match="LayerNorm only, not RMSNorm"):
        patch_weights(model, pixels())
