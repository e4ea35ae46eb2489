"""The CPU path: blocks of any size give one result, and no value leaves the range where exp and log are fast."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmrep.pooling.kernels import Saved, blocked
from mmrep.pooling.kernels.operation import power_mean

NEGATIVES = ["clamp", "shift", "signed"]


def run(x: Tensor, p: Tensor, negatives: str) -> list[Tensor]:
    """Result, statistics and gradients."""
    pooled, saved = blocked.forward(x, p, 1e-6, negatives, True)
    grad = torch.linspace(-1, 1, pooled.numel()).view_as(pooled)
    gradients = blocked.backward(grad, x, p, pooled, saved, 1e-6, negatives, (True, True))
    return [pooled, *(t for t in (*saved, *gradients) if t is not None)]


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch, negatives: str, dtype: torch.dtype) -> None:
    x = torch.randn(7, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    p = torch.tensor([0.5, 1.0, 3.0, 10.0, 100.0])
    whole = run(x, p, negatives)
    image, threads = 6 * 5 * 4, torch.get_num_threads()
    # An image at a time, and three at a time with a rest of one.
    for size in (1, -(-3 * image // threads)):
        monkeypatch.setattr(blocked, "BLOCK_BYTES", size)
        assert len(list(blocked._blocks(x, x))) == (7 if size == 1 else 3)
        for found, right in zip(run(x, p, negatives), whole, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)


def test_what_is_kept() -> None:
    x, p = torch.rand(2, 6, 5), torch.full((5,), 3.0)
    assert blocked.forward(x, p, 1e-6, "clamp", False)[1] == Saved(None, None, None)
    derivative, scale, other = blocked.forward(x, p, 1e-6, "shift", True)[1]
    assert derivative is not None
    assert scale is not None
    assert other is not None
    assert derivative.shape == scale.shape == other.shape == (2, 5)
    pooled, saved = blocked.forward(x, p, 1e-6, "clamp", False)
    assert blocked.backward(pooled, x, p, pooled, saved, 1e-6, "clamp", (False, False)) == (None, None)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [3.0, 100.0])
def test_an_empty_batch_gives_an_empty_result(negatives: str, exponent: float) -> None:
    x, p = torch.empty(0, 6, 5, requires_grad=True), torch.full((5,), exponent, requires_grad=True)
    pooled = power_mean(x, p, 1e-6, negatives)
    pooled.sum().backward()
    assert pooled.shape == (0, 5)
    assert x.grad is not None
    assert p.grad is not None
    assert x.grad.shape == x.shape
    assert torch.equal(p.grad, torch.zeros(5))


def test_tokens_are_only_read() -> None:
    x, p = torch.randn(2, 6, 5), torch.full((5,), 3.0)
    before = x.clone()
    for negatives in NEGATIVES:
        run(x, p, negatives)
        assert torch.equal(x, before)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [0.05, 1.01, 3.0, 4.5, 5.7, 7.0, 100.0])
def test_nothing_underflows_where_exp_and_log_are_slow(negatives: str, exponent: float) -> None:
    """The vectorised exp and log take a hundred times as long where they underflow or get what is not positive."""
    tiny = torch.finfo(torch.float32).tiny
    bad: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's hook
            name = func.__name__.split(".")[0]
            if name == "log_" and args[0].ndim == 3 and not (args[0] >= tiny).all():
                bad.append("log of a value that is not positive and normal")
            result = func(*args, **(kwargs or {}))
            if name == "exp_" and result.ndim == 3 and not ((result >= tiny) & result.isfinite()).all():
                bad.append("exp that leaves the normal range")
            return result

    x = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 0
    with Watch():
        run(x, torch.full((4,), exponent), negatives)
    assert bad == []


@pytest.mark.parametrize("exponent", [0.5, 3.0, 5.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12, 1e30])
def test_the_scale_of_the_tokens_does_not_change_the_precision(exponent: float, scale: float) -> None:
    x, p = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)), torch.full((5,), exponent)
    x = x.clamp(min=-1.0)
    found: list[list[Tensor]] = []
    for factor in (1.0, scale):
        pooled, saved = blocked.forward(x * factor, p, 1e-3 * factor, "clamp", True)
        dx, dp = blocked.backward(
            torch.ones_like(pooled), x * factor, p, pooled, saved, 1e-3 * factor, "clamp", (True, True)
        )
        assert dx is not None
        assert dp is not None
        found.append([pooled / factor, dx, dp / factor])
    for scaled, plain in zip(*found, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=5e-5, atol=1e-6)
