"""Class attention: against the formula in float64, what it reads, parameters, wrong use."""

import math

import numpy as np
import pytest
import torch

from mmrep.config.checks import ConfigError
from mmrep.pooling import Tokens, build_pool
from mmrep.pooling.cap import ClassAttention

WIDTH, HEADS = 24, 4
Array = np.ndarray


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """Values of a size at which every part of the formula matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + 0.1)
    return module


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * weight + bias


def reference(block: ClassAttention, queries: Array, tokens: Array, patches: Array) -> Array:
    """CaiT's class attention, one image, one query and one head at a time."""
    w = {name: value.double().numpy() for name, value in block.state_dict().items()}
    each = queries.shape[1] // block.num_heads
    outputs = np.zeros((len(patches), len(queries), queries.shape[1]))
    for i, image in enumerate(patches):
        u = layer_norm(np.concatenate([tokens, image]), w["norm1.weight"], w["norm1.bias"])
        k, v = np.split(u @ w["kv.weight"].T, 2, axis=1)
        for j, z in enumerate(queries):
            q = layer_norm(z, w["norm1.weight"], w["norm1.bias"]) @ w["q.weight"].T
            heads = []
            for h in range(block.num_heads):
                part = slice(h * each, (h + 1) * each)
                weights = np.exp(k[:, part] @ q[part] / math.sqrt(each))
                heads.append(weights / weights.sum() @ v[:, part])
            z = z + w["proj.weight"] @ np.concatenate(heads) + w["proj.bias"]
            if block.ffn is not None:
                hidden = w["ffn.0.weight"] @ layer_norm(z, w["norm2.weight"], w["norm2.bias"]) + w["ffn.0.bias"]
                gelu = hidden * np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in hidden])
                z = z + w["ffn.2.weight"] @ gelu + w["ffn.2.bias"]
            outputs[i, j] = z
    return outputs


@pytest.mark.parametrize("ffn_ratio", [0.0, 2.0])
@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (3, 3), (4, 3), (1, 3)])
def test_agrees_with_the_formula(ffn_ratio: float, queries: int, tokens: int) -> None:
    block = scrambled(ClassAttention(WIDTH, HEADS, ffn_ratio)).double()
    q, z, x = (draw(*shape, WIDTH, seed=i).double() for i, shape in enumerate([(queries,), (tokens,), (2, 7)]))
    expected = reference(block, q.numpy(), z.numpy(), x.numpy())
    np.testing.assert_allclose(block(q, z, x).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


def test_cap_is_one_token_over_itself_and_the_patches() -> None:
    head = scrambled(build_pool("cap", dim=WIDTH, num_heads=HEADS))
    x = draw(2, 7, WIDTH)
    pooled = head(Tokens(draw(2, 3, WIDTH, seed=9), x, (1, 7))).embedding
    z = head.tokens.detach().double().numpy()
    expected = reference(head.block.double(), z, z, x.double().numpy())[:, 0]
    np.testing.assert_allclose(pooled.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_prefix_tokens_are_not_attended_to() -> None:
    head, x = build_pool("cap", dim=WIDTH, num_heads=HEADS), draw(2, 7, WIDTH)
    with_prefix = head(Tokens(draw(2, 5, WIDTH, seed=3), x, (1, 7))).embedding
    assert torch.equal(with_prefix, head(Tokens(x[:, :0], x, (1, 7))).embedding)


@pytest.mark.parametrize(("ffn_ratio", "matrices"), [(0.0, 4), (2.0, 8), (4.0, 12)])
def test_parameters(ffn_ratio: float, matrices: int) -> None:
    head = build_pool("cap", dim=WIDTH, num_heads=HEADS, ffn_ratio=ffn_ratio)
    weights = sum(p.numel() for name, p in head.named_parameters() if p.ndim == 2 and name != "tokens")
    assert weights == matrices * WIDTH**2
    assert head.no_weight_decay() == {"tokens"}
    assert head.tokens.ndim == 2


def test_initial_values() -> None:
    head = build_pool("cap", dim=192, num_heads=3)
    for name, parameter in head.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter))
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2)


def test_gradients_against_finite_differences() -> None:
    block = scrambled(ClassAttention(6, 2, 1.0)).double()
    inputs = [draw(*shape, 6, seed=i).double().requires_grad_() for i, shape in enumerate([(2,), (2,), (2, 3)])]
    assert torch.autograd.gradcheck(block, inputs)


def test_bf16_autocast_agrees_with_fp32() -> None:
    head, x = scrambled(build_pool("cap", dim=WIDTH, num_heads=HEADS)), draw(2, 7, WIDTH)
    expected = head(Tokens(x[:, :0], x, (1, 7))).embedding
    with torch.autocast("cpu", torch.bfloat16):
        pooled = head(Tokens(x[:, :0], x.bfloat16(), (1, 7))).embedding
    assert (pooled.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("num_heads", [None, 5])
def test_heads_have_to_divide_the_width(num_heads: int | None) -> None:
    with pytest.raises(ConfigError, match="pool 'cap': num_heads must divide the trunk's width 24"):
        build_pool("cap", dim=WIDTH, num_heads=num_heads)
