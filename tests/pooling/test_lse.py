"""Log-sum-exp: limits, stability for any sharpness and value, gradients, training."""

import math

import pytest
import torch

from mmrep.pooling import Tokens, build_pool
from mmrep.pooling.lse import MAX_SHARPNESS


def tokens(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tokens:
    x = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)).to(dtype) * scale
    return Tokens(x[:, :0], x.requires_grad_(), (3, 3))


def test_small_sharpness_is_the_mean_and_large_the_maximum() -> None:
    x = tokens()
    mean, top = x.patches.mean(1), x.patches.amax(1)
    # y = mean + r/2 · variance + O(r²)
    torch.testing.assert_close(build_pool("lse", 5, r=1e-4)(x).embedding, mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(build_pool("lse", 5, r=MAX_SHARPNESS)(x).embedding, top, atol=1e-3, rtol=0)
    middle = build_pool("lse", 5, r=2.0)(x).embedding
    assert ((middle > mean) & (middle < top)).all()


@pytest.mark.parametrize("r", [1e-4, 1e-2, 1.0, 30.0, 1e4])
def test_as_exact_as_fp32_allows(r: float) -> None:
    """torch.logsumexp alone is wrong by 1e-3 at r = 1e-4."""
    x = tokens()
    pooled = build_pool("lse", 5, r=r)(x).embedding
    values = x.patches.detach().double()
    exact = (torch.logsumexp(values * r, 1) - torch.tensor(9.0, dtype=torch.float64).log()) / r
    torch.testing.assert_close(pooled.double(), exact, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("r", [1e-30, 1e-4, 5.0, 1e4, 1e30])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finite_over_the_range_of_values_and_sharpness(r: float, scale: float, dtype: torch.dtype) -> None:
    head, x = build_pool("lse", 5), tokens(scale, dtype)
    head.log_sharpness.data.fill_(math.log(r))  # wherever training may have driven it
    pooled = head(x).embedding
    (pooled.float() / scale).sum().backward()
    assert pooled.isfinite().all()
    for gradient in (x.patches.grad, head.log_sharpness.grad):
        assert gradient is not None and gradient.isfinite().all()


@pytest.mark.parametrize("r", [0.3, 5.0])
def test_gradients_against_finite_differences(r: float) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head = build_pool("lse", 3, r=r).double()

    def pool(x: torch.Tensor, log_sharpness: torch.Tensor) -> torch.Tensor:
        tokens = Tokens(x[:, :0], x, (2, 2))
        return torch.func.functional_call(head, {"log_sharpness": log_sharpness}, (tokens,)).embedding

    assert torch.autograd.gradcheck(pool, (x, head.log_sharpness.detach().requires_grad_()))


def test_sharpness_is_one_learned_fp32_vector_unless_fixed() -> None:
    head = build_pool("lse", dim=5, r=7.0, lr_scale=3.0)
    assert head.sharpness().shape == (1,)
    assert head.sharpness().item() == pytest.approx(7.0)
    assert head.lr_scales() == {"log_sharpness": 3.0}
    assert not any(p.requires_grad for p in build_pool("lse", dim=5, learn=False).parameters())
