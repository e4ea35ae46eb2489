"""Every head of the registry: shapes, gradients, precision, one token, order of patches, a float64 reference."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import POOL_ARGS
from mmrep.pooling import PoolingHead, Tokens, build_pool, list_pools

WIDTH, HEADS = 24, 4


def build(name: str, **args: object) -> PoolingHead:
    torch.manual_seed(0)
    return build_pool(name, dim=WIDTH, num_heads=HEADS, **args)


def tokens(count: int = 9, batch: int = 3, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randn(batch, 1, WIDTH, generator=generator).to(dtype)
    patches = torch.randn(batch, count, WIDTH, generator=generator).to(dtype)
    return Tokens(prefix.requires_grad_(grad), patches.requires_grad_(grad), (1, count))


def power_mean(x: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.mean(x**p, axis=1) ** (1 / p)


REFERENCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cls": lambda prefix, x: prefix[:, 0],
    "avg": lambda prefix, x: x.mean(1),
    "max": lambda prefix, x: x.max(1),
    "gem": lambda prefix, x: power_mean(np.maximum(x, 1e-6), np.full(WIDTH, 3.0)),
    "ggem": lambda prefix, x: power_mean(np.maximum(x, 1e-6), np.full(WIDTH, 3.0)),
    "relu_avg": lambda prefix, x: np.maximum(x, 1e-6).mean(1),
}


def test_every_declared_head_is_registered() -> None:
    assert list_pools() == list(POOL_ARGS)


@pytest.mark.parametrize("name", list_pools())
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_type_and_finiteness(name: str, count: int, dtype: torch.dtype) -> None:
    head = build(name).to(dtype if name == "map" else torch.float32)
    pooled = head(tokens(count, dtype=dtype)).embedding
    assert pooled.shape == (3, head.out_dim)
    assert pooled.dtype == dtype
    assert pooled.isfinite().all()


@pytest.mark.parametrize("name", list_pools())
def test_every_parameter_and_input_receives_a_gradient(name: str) -> None:
    head, x = build(name), tokens(grad=True)
    head(x).embedding.square().sum().backward()
    for label, parameter in head.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.isfinite().all(), label
        assert parameter.grad.abs().sum() > 0, label
    source = x.prefix if head.needs_class_token else x.patches
    assert source.grad is not None
    assert source.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in list_pools() if name != "cls"])
def test_order_of_patches_does_not_matter_where_claimed(name: str) -> None:
    head, x = build(name), tokens()
    shuffled = x._replace(patches=x.patches[:, torch.randperm(9, generator=torch.Generator().manual_seed(3))])
    same = torch.allclose(head(x).embedding, head(shuffled).embedding, atol=1e-5)
    assert same == head.invariant


@pytest.mark.parametrize("name", list_pools())
def test_deterministic(name: str) -> None:
    assert torch.equal(build(name)(tokens()).embedding, build(name)(tokens()).embedding)


@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_a_float64_reference(name: str) -> None:
    x = tokens()
    expected = REFERENCES[name](x.prefix.double().numpy(), x.patches.double().numpy())
    np.testing.assert_allclose(build(name)(x).embedding.detach().numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", list_pools())
def test_state_dict_round_trip(name: str) -> None:
    head = build(name)
    other = build_pool(name, dim=WIDTH, num_heads=HEADS)
    other.load_state_dict(head.state_dict())
    assert torch.equal(head(tokens()).embedding, other(tokens()).embedding)


@pytest.mark.parametrize("name", list_pools())
def test_no_parameter_is_without_dimensions(name: str) -> None:
    assert all(parameter.ndim > 0 for parameter in build(name).parameters())


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("gegem", {}, "did you mean 'ggem'"),
        ("avg", {"p": 3.0}, "has no argument 'p' (valid: none)"),
        ("ggem", {"group": 3}, "has no argument 'group' (valid: p, eps"),
        ("ggem", {"groups": 5}, "groups must divide the trunk's width 24, got 5; divisors: [1, 2, 3, 4, 6, 8, 12, 24]"),
        ("ggem", {"groups": "four"}, "expected int | None, got 'four'"),
        ("gem", {"p": 0.0}, "expected a value > 0"),
        ("gem", {"p": 1000.0}, "use pool 'max'"),
        ("gem", {"negatives": "abs"}, "valid: clamp, shift, signed"),
        ("map", {"mlp_ratio": -1.0}, "expected a value > 0"),
    ],
)
def test_wrong_use_is_one_clear_line(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_pool(name, dim=WIDTH, num_heads=HEADS, **args)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ggem_needs_groups_or_heads() -> None:
    with pytest.raises(ConfigError, match="give groups"):
        build_pool("ggem", dim=WIDTH)
    assert build_pool("ggem", dim=WIDTH, num_heads=6).groups == 6
    assert build_pool("ggem", dim=WIDTH, num_heads=6, groups=3).groups == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t._replace(patches=t.patches[:, :, :5]), "expected patches of shape"),
        (lambda t: t._replace(patches=t.patches[:, :0]), "expected patches of shape"),
        (lambda t: t._replace(prefix=t.prefix[:, :0]), "class token"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(change: Callable[[Tokens], Tokens], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("cls")(change(tokens()))


def test_heads_that_need_the_grid_refuse_dropped_patches() -> None:
    class Grid(PoolingHead):
        needs_grid = True

        def pool(self, tokens: Tokens) -> Tensor:
            return tokens.patches[:, 0]

    x = tokens()
    assert Grid(WIDTH)(x).embedding.shape == (3, WIDTH)
    with pytest.raises(ValueError, match="patch dropout"):
        Grid(WIDTH)(x._replace(index=torch.arange(9).expand(3, -1)))
