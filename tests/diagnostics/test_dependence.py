"""Dependence between channel groups, on samples whose dependence is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.dependence import Dependence, channel_groups, group_dependence, mean_hsic, sample_tokens
from mmrep.model.dual_encoder import DualEncoder


def normal(samples: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))


def two_groups(first: Tensor, second: Tensor) -> Dependence:
    groups = torch.tensor([0] * first.shape[1] + [1] * second.shape[1])
    return group_dependence(torch.cat([first, second], dim=1), groups)


def test_independent_channels_are_at_the_floor_and_have_no_hsic() -> None:
    found = group_dependence(normal(1024, 48), torch.arange(48) // 12)
    assert (found.samples, found.groups) == (1024, 4)
    assert found.floor == pytest.approx(math.sqrt(2 / (math.pi * 1023)))
    assert found.between == pytest.approx(found.floor, rel=0.1)
    assert found.within == pytest.approx(found.floor, rel=0.1)
    assert found.hsic_rbf == pytest.approx(0, abs=0.005)
    assert found.hsic_linear == pytest.approx(0, abs=0.005)


@pytest.mark.parametrize("factor", [1.0, -3.0])
def test_equal_groups_depend_wholly(factor: float) -> None:
    x = normal(200, 1)
    found = two_groups(x, factor * x)
    assert found.between == pytest.approx(1)
    assert found.within is None
    assert found.hsic_rbf == pytest.approx(1)
    assert found.hsic_linear == pytest.approx(1)


def test_channels_with_a_common_factor_correlate_as_it_was_mixed() -> None:
    x = math.sqrt(0.3) * normal(2000, 1, 1) + math.sqrt(0.7) * normal(2000, 6, 2)
    found = two_groups(x, normal(2000, 6, 3))
    within = group_dependence(x, torch.zeros(6, dtype=torch.int64))
    assert within.within == pytest.approx(0.3, abs=0.03)
    assert (within.between, within.hsic_rbf) == (None, None)
    assert found.between == pytest.approx(found.floor, rel=0.35)


def test_only_the_rbf_kernel_sees_that_one_group_is_the_square_of_the_other() -> None:
    x = torch.cat([normal(500, 1), -normal(500, 1)])
    found = two_groups(x, x.square())
    assert found.between == pytest.approx(0, abs=1e-6)
    assert found.hsic_linear == pytest.approx(0, abs=0.01)
    assert found.hsic_rbf is not None and found.hsic_rbf > 0.3


def song(k: Tensor, kernel: Tensor) -> float:
    """The unbiased estimator as Song et al. write it: traces and sums of matrices without diagonals."""
    m, one = len(k), torch.ones(len(k), dtype=k.dtype)
    k, kernel = k - k.diagonal().diag(), kernel - kernel.diagonal().diag()
    third = one @ k @ kernel @ one
    both = (one @ k @ one) * (one @ kernel @ one) / ((m - 1) * (m - 2))
    return float((torch.trace(k @ kernel) + both - 2 * third / (m - 2)) / (m * (m - 3)))


def test_hsic_is_the_unbiased_estimator() -> None:
    x = normal(40, 3).double()
    y = (x[:, :2] + 0.5 * normal(40, 2, 1)).double()
    k, kernel = x @ x.T, y @ y.T
    expected = song(k, kernel) / math.sqrt(song(k, k) * song(kernel, kernel))
    assert mean_hsic([x, y], "linear") == pytest.approx(expected)
    distances = torch.pdist(x)
    k = torch.exp(-torch.cdist(x, x).square() / (2 * distances.sort().values[(len(distances) - 1) // 2].square()))
    rbf = mean_hsic([x, x @ torch.linalg.qr(normal(3, 3, 5).double()).Q])
    assert rbf == pytest.approx(1)
    kernel = torch.exp(-torch.cdist(y, y).square() / (2 * torch.pdist(y).median().square()))
    assert mean_hsic([x, y]) == pytest.approx(song(k, kernel) / math.sqrt(song(k, k) * song(kernel, kernel)))


def test_small_samples_are_not_biased() -> None:
    values = [mean_hsic([normal(12, 4, 2 * i).double(), normal(12, 4, 2 * i + 1).double()]) for i in range(300)]
    # The biased estimator gives about 0.3 here.
    assert sum(v for v in values if v is not None) / 300 == pytest.approx(0, abs=0.03)


def test_the_scale_of_channels_does_not_matter_and_constant_ones_are_left_out() -> None:
    x = normal(100, 4)
    x[:, 2] += x[:, 0]
    groups = torch.tensor([0, 0, 1, 1])
    scaled = torch.cat([x * torch.tensor([1.0, 100.0, 1e-3, 7.0]) + 5, torch.full((100, 2), 3.0)], dim=1)
    one, other = group_dependence(x, groups), group_dependence(scaled, torch.tensor([0, 0, 1, 1, 1, 2]))
    assert other == pytest.approx(one, rel=1e-3)


def test_many_groups_are_bounded() -> None:
    found = group_dependence(normal(50, 40), torch.arange(40))
    assert found.groups == 40 and found.within is None
    assert found.hsic_rbf == pytest.approx(0, abs=0.03)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 8 samples, got 7"):
        group_dependence(normal(7, 4), torch.arange(4))


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_one_token_of_each_image_whatever_the_batches(tiny: Callable[..., DualEncoder]) -> None:
    model, images = tiny("avg").eval(), pixels(20)
    found = sample_tokens(model, [images[:3], images[3:11], images[11:]], limit=15)
    assert found.shape == (15, 32)
    torch.testing.assert_close(found, sample_tokens(model, [images], limit=15), rtol=0, atol=1e-5)
    with torch.inference_mode():
        patches = model.image.tokens(images[:15]).patches
    distances = (patches - found[:, None]).abs().amax(2)
    assert (distances.amin(1) < 1e-5).all()
    assert len(distances.argmin(1).unique()) > 4
    with pytest.raises(ConfigError, match="no images"):
        sample_tokens(model, [])


def test_groups_are_the_heads_own_or_those_of_the_attention(tiny: Callable[..., DualEncoder]) -> None:
    halves = torch.arange(32) // 16
    assert torch.equal(channel_groups(tiny("avg")), halves)
    assert torch.equal(channel_groups(tiny("gem")), halves)
    random = tiny({"name": "ggem", "args": {"groups": 4, "grouping": "random"}})
    assert torch.equal(channel_groups(random), random.image.pool.group_of_channel)
    assert channel_groups(random).unique().tolist() == [0, 1, 2, 3]
