"""Means and maxima: known values, and accumulation in fp32."""

import pytest
import torch

from mmrep.pooling import Tokens, build_pool


def pool(name: str, x: torch.Tensor) -> torch.Tensor:
    return build_pool(name, dim=x.shape[-1])(Tokens(x[:, :0], x, (1, x.shape[1]))).embedding


def test_known_values() -> None:
    x = torch.tensor([[[1.0, -4.0], [3.0, 0.0], [8.0, -2.0]]])
    torch.testing.assert_close(pool("avg", x), torch.tensor([[4.0, -2.0]]))
    torch.testing.assert_close(pool("max", x), torch.tensor([[8.0, 0.0]]))
    torch.testing.assert_close(pool("avgmax", x), torch.tensor([[6.0, -1.0]]))
    torch.testing.assert_close(pool("relu_avg", x), torch.tensor([[4.0, 1e-6]]))


def test_avgmax_is_timms() -> None:
    from timm.layers.adaptive_avgmax_pool import adaptive_avgmax_pool2d

    x = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    images = x.transpose(1, 2).unflatten(2, (3, 4))
    torch.testing.assert_close(pool("avgmax", x), adaptive_avgmax_pool2d(images, 1).flatten(1))


@pytest.mark.parametrize("name", ["avg", "avgmax", "relu_avg"])
def test_bf16_results_are_rounded_once(name: str) -> None:
    x = (torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0)) + 3).bfloat16()
    assert torch.equal(pool(name, x), pool(name, x.float()).bfloat16())
