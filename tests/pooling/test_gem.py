"""Power means: limits, negative tokens, large exponents, groups, exponents under training."""

import math

import pytest
import torch

from mmrep.pooling import Tokens, build_pool
from mmrep.pooling.gem import generalized_mean

NEGATIVES = ["clamp", "shift", "signed"]


def patches(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("negatives", ["shift", "signed"])
def test_exponent_one_is_the_mean(negatives: str) -> None:
    x = patches(2, 7, 5)
    pooled = generalized_mean(x, torch.ones(5), negatives=negatives)
    torch.testing.assert_close(pooled, x.mean(1), rtol=1e-9, atol=1e-9)


def test_clamped_exponent_one_is_relu_avg() -> None:
    x = patches(2, 7, 6, dtype=torch.float32)
    tokens = Tokens(x[:, :1], x, (1, 7))
    clamped = build_pool("gem", dim=6, p=1.0)(tokens).embedding
    torch.testing.assert_close(clamped, build_pool("relu_avg", dim=6)(tokens).embedding)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_large_exponents_approach_the_maximum(negatives: str) -> None:
    x = patches(2, 7, 5).abs() + 0.1
    pooled = generalized_mean(x, torch.full((5,), 100.0), negatives=negatives)
    top, low = x.amax(1), x.amin(1) if negatives == "shift" else 0
    # N values of which one is the maximum: (1/N)^(1/p) of it is the least that a power mean can be.
    assert (pooled <= top + 1e-9).all()
    assert (pooled - low >= (top - low) * (1 / 7) ** (1 / 100) - 1e-9).all()


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0, 4.6])
def test_gradients_against_finite_differences(negatives: str, exponent: float) -> None:
    x = patches(2, 4, 3).requires_grad_()
    p = torch.full((3,), exponent, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, p: generalized_mean(x, p, 1e-3, negatives), (x, p))


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e4, 1e18])
@pytest.mark.parametrize("exponent", [0.05, 3.0, 100.0])
def test_finite_over_the_range_of_values_and_exponents(negatives: str, scale: float, exponent: float) -> None:
    x = (patches(2, 5, 4, dtype=torch.float32) * scale).requires_grad_()
    p = torch.full((4,), exponent, requires_grad=True)
    pooled = generalized_mean(x, p, negatives=negatives)
    (pooled / scale).sum().backward()
    assert pooled.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()
    assert p.grad is not None and p.grad.isfinite().all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_constant_channels(negatives: str) -> None:
    x = torch.full((1, 5, 2), 0.75, requires_grad=True)
    pooled = generalized_mean(x, torch.tensor([3.0, 7.0]), negatives=negatives)
    torch.testing.assert_close(pooled, torch.full((1, 2), 0.75))
    pooled.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_signed_keeps_the_sign_and_is_odd() -> None:
    x = patches(2, 7, 5)
    p = torch.full((5,), 3.0)
    pooled = generalized_mean(x, p, negatives="signed")
    torch.testing.assert_close(generalized_mean(-x, p, negatives="signed"), -pooled)
    mean = (x.sign() * x.abs() ** 3).mean(1)
    torch.testing.assert_close(pooled, mean.sign() * mean.abs() ** (1 / 3), rtol=1e-4, atol=1e-4)


def test_groups_are_slices_with_an_exponent_each() -> None:
    x = patches(2, 7, 6, dtype=torch.float32).abs()
    head = build_pool("ggem", dim=6, groups=2)
    with torch.no_grad():
        head.log_exponent.copy_(torch.tensor([1.0, 5.0]).log())
    pooled = head(Tokens(x[:, :1], x, (1, 7))).embedding
    torch.testing.assert_close(pooled[:, :3], x[:, :, :3].clamp(min=1e-6).mean(1))
    torch.testing.assert_close(pooled[:, 3:], generalized_mean(x[:, :, 3:], torch.full((3,), 5.0)))
    torch.testing.assert_close(head.exponents(), torch.tensor([1.0, 5.0]))


def test_random_groups_are_a_fixed_partition_that_is_saved() -> None:
    head = build_pool("ggem", dim=12, groups=3, grouping="random", grouping_seed=5)
    assert head.group_of_channel.bincount().tolist() == [4, 4, 4]
    assert head.group_of_channel.tolist() != sorted(head.group_of_channel.tolist())
    assert "group_of_channel" in head.state_dict()
    same = build_pool("ggem", dim=12, groups=3, grouping="random", grouping_seed=5)
    assert torch.equal(head.group_of_channel, same.group_of_channel)


@pytest.mark.parametrize("learning_rate", [0.01, 100.0])
def test_exponents_stay_finite_and_positive_in_bf16_training(learning_rate: float) -> None:
    head = build_pool("ggem", dim=8, groups=4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate)
    for step in range(20):
        x = patches(2, 6, 8, dtype=torch.float32).bfloat16() * (step + 1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = head(Tokens(x[:, :1], x, (1, 6))).embedding.float().square().mean() * (-1) ** (step // 7)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        exponents = head.exponents()
        assert exponents.isfinite().all()
        assert (exponents > 0).all()
        assert (exponents <= 100 + 1e-3).all()


def test_fixed_exponents_are_not_trained() -> None:
    assert not any(p.requires_grad for p in build_pool("gem", dim=8, learn=False).parameters())
    assert math.isclose(build_pool("gem", dim=8, p=4.6).exponents().item(), 4.6, rel_tol=1e-6)


@pytest.mark.parametrize(("start", "target"), [(20.0, 3.0), (-20.0, 3.0)])
def test_exponents_past_their_bounds_come_back(start: float, target: float) -> None:
    head = build_pool("gem", dim=4)
    with torch.no_grad():
        head.log_exponent.fill_(start)
    assert head.exponents().item() == pytest.approx(100.0 if start > 0 else 0.01, rel=1e-5)
    (head.exponents() - target).square().sum().backward()
    assert torch.sign(head.log_exponent.grad).item() == math.copysign(1, start), "downhill is towards the target"
