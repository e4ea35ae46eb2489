"""Regional power means: SuperGlobal's definition, small grids, negative tokens, large exponents, gradients."""

import pytest
import torch
import torch.nn.functional as F

from mmrep.config.heads import Negatives
from mmrep.pooling import Tokens, build_pool
from mmrep.pooling.gem import generalized_mean
from mmrep.pooling.regional import regional_mean

NEGATIVES: list[Negatives] = ["clamp", "shift", "signed"]


def grid(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, rows, columns, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("exponent", "kernel"), [(2.5, 5), (1.0, 3), (7.0, 7)])
def test_is_superglobals_lp_pooling_for_positive_values(exponent: float, kernel: int) -> None:
    x = grid(6, 7).abs() + 0.01
    images = x.permute(0, 3, 1, 2)
    padded = F.pad(images, (kernel // 2,) * 4, mode="reflect")
    local = F.lp_pool2d(padded, exponent, kernel, stride=1) / kernel ** (2 / exponent)
    expected = (0.5 * local + 0.5 * images).permute(0, 2, 3, 1)
    torch.testing.assert_close(regional_mean(x, exponent, kernel), expected)
    torch.testing.assert_close(regional_mean(x, exponent, kernel, negatives="signed"), expected, rtol=1e-6, atol=0)
    low = x.amin((1, 2), keepdim=True)
    torch.testing.assert_close(regional_mean(x, exponent, kernel, negatives="shift"), regional_mean(x - low, exponent,
        kernel, eps=1e-15) + low, rtol=1e-6, atol=0)  # fmt: skip


def test_signed_is_odd_and_keeps_signs() -> None:
    x = grid(4, 5)
    pooled = regional_mean(x, 3.0, 3, negatives="signed")
    torch.testing.assert_close(regional_mean(-x, 3.0, 3, negatives="signed"), -pooled)
    windows = F.pad(x.permute(0, 3, 1, 2), (1,) * 4, mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
    mean = (windows.sign() * windows.abs() ** 3).mean((-1, -2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled, 0.5 * (mean.sign() * mean.abs() ** (1 / 3) + x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("negatives", ["shift", "signed"])
def test_exponent_one_is_a_box_filter(negatives: Negatives) -> None:
    x = grid(5, 5)
    boxed = F.avg_pool2d(F.pad(x.permute(0, 3, 1, 2), (1,) * 4, mode="reflect"), 3, stride=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(regional_mean(x, 1.0, 3, negatives=negatives), 0.5 * (boxed + x))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (4, 1), (2, 2), (2, 5), (3, 2)])
def test_windows_shrink_to_what_reflection_allows(shape: tuple[int, int]) -> None:
    x = grid(*shape).abs() + 0.1
    pads = [min(2, side - 1) for side in shape]
    padded = F.pad(x.permute(0, 3, 1, 2), (pads[1], pads[1], pads[0], pads[0]), mode="reflect")
    windows = padded.unfold(2, 2 * pads[0] + 1, 1).unfold(3, 2 * pads[1] + 1, 1)
    local = (windows**2.5).mean((-1, -2)) ** 0.4
    torch.testing.assert_close(regional_mean(x, 2.5, 5), 0.5 * (local.permute(0, 2, 3, 1) + x))


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [0.05, 2.5, 100.0])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e18])
def test_finite_over_the_range_of_values_and_exponents(negatives: Negatives, exponent: float, scale: float) -> None:
    x = (grid(4, 4, torch.float32) * scale).requires_grad_()
    pooled = regional_mean(x, exponent, 5, negatives=negatives)
    (pooled / scale).sum().backward()
    assert pooled.isfinite().all()
    assert x.grad is not None and x.grad.isfinite().all()


def test_windows_of_small_values_beside_a_large_one_keep_theirs_at_large_exponents() -> None:
    x = torch.full((1, 8, 8, 1), 0.1)
    x[0, 0, 0] = 10.0  # (0.1 / 10)^100 is far below fp32
    pooled = regional_mean(x, 100.0, 3)
    torch.testing.assert_close(pooled[0, 4:, 4:], x[0, 4:, 4:])


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [0.7, 2.5, 30.0])
def test_gradients_against_finite_differences(negatives: Negatives, exponent: float) -> None:
    x = grid(3, 4)[:1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: regional_mean(x, exponent, 3, 1e-6, negatives), (x,))


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_constant_channels_are_kept(negatives: Negatives) -> None:
    x = torch.full((1, 3, 3, 2), 0.75, requires_grad=True)
    pooled = regional_mean(x, 2.5, 3, negatives=negatives)
    torch.testing.assert_close(pooled, x.detach())
    pooled.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_the_head_is_the_global_mean_of_the_regional_one() -> None:
    x = grid(4, 5, torch.float32)
    tokens = Tokens(x[:, 0, :0], x.flatten(1, 2), (4, 5))
    head = build_pool("rgem", dim=3, p=3.0, regional_p=2.0, kernel=3, negatives="shift", lr_scale=2.0)
    regional = regional_mean(x, 2.0, 3, negatives="shift").flatten(1, 2)
    expected = generalized_mean(regional, torch.full((3,), 3.0), negatives="shift")
    torch.testing.assert_close(head(tokens).embedding, expected)
    assert head.exponents().tolist() == pytest.approx([3.0])
    assert head.lr_scales() == {"log_exponent": 2.0}


def test_defaults_are_superglobals() -> None:
    head = build_pool("rgem", dim=3)
    assert head.exponents().tolist() == pytest.approx([4.6])
    assert (head.regional_p, head.kernel) == (2.5, 5)


def test_patches_that_are_not_the_grid_are_refused() -> None:
    x = torch.randn(1, 9, 3)
    with pytest.raises(ValueError, match=r"expected patches of a \(2, 3\) grid, got 9"):
        build_pool("rgem", dim=3)(Tokens(x[:, :0], x, (2, 3)))
