"""The average with an MLP: the number of parameters asked for, the residual."""

import pytest
import torch

from mmrep.config.checks import ConfigError
from mmrep.pooling import Tokens, build_pool


def count(head: torch.nn.Module) -> int:
    return sum(p.numel() for p in head.parameters())


@pytest.mark.parametrize("dim", [8, 24, 384, 768])
@pytest.mark.parametrize("share", [1.0, 8.0, 12.3])
def test_has_the_parameters_asked_for_to_half_a_hidden_unit(dim: int, share: float) -> None:
    wanted = round(share * dim**2)
    assert abs(count(build_pool("avg_mlp", dim=dim, params=wanted)) - wanted) <= dim + 0.5


def test_is_as_large_as_cap_by_default() -> None:
    heads = [build_pool(name, dim=768, num_heads=12) for name in ("avg_mlp", "cap")]
    assert count(heads[0]) == pytest.approx(count(heads[1]), rel=2e-3)


def test_adds_to_the_average() -> None:
    head = build_pool("avg_mlp", dim=24)
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(head.mlp[-1].weight)
    torch.testing.assert_close(head(Tokens(x[:, :0], x, (3, 3))).embedding, x.mean(1))


def test_too_few_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match="'avg_mlp': params must be at least 121 at the trunk's width 24, got 90"):
        build_pool("avg_mlp", dim=24, params=90)
    assert count(build_pool("avg_mlp", dim=24, params=121)) == 121
