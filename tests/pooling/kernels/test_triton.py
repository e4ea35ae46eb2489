"""The Triton path of the power mean against the plain reference in float64: on a GPU, else in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.pooling.kernels import reference

pytest.importorskip("triton", reason="triton is not installed")
from mmrep.pooling.kernels import triton as path

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA and not INTERPRETED else "cpu"
NEGATIVES = ["clamp", "shift", "signed"]
EPS = 1e-6


@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests below run in this process")
@pytest.mark.long
def test_in_the_interpreter() -> None:
    # Triton must be imported under the variable, which would change Triton for every later test of this process.
    run = subprocess.run(
        [sys.executable, "-m", "pytest", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.fixture
def _quiet() -> Iterator[None]:
    """The interpreter calculates in numpy, which warns where a GPU does not; masked channels reach such values."""
    with np.errstate(all="ignore"):
        yield


def tokens(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Patches of a token tensor with a class token before them: a slice, its first row at an odd address."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape[0], shape[1] + 1, shape[2], generator=generator, dtype=torch.float64)
    return (x * scale).to(DEVICE, dtype)[:, 1:]


def exponents(p: float, width: int) -> Tensor:
    """One for each channel, near p."""
    return p * torch.linspace(0.9, 1, width, device=DEVICE)


def check(x: Tensor, p: Tensor, negatives: str, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Value and both gradients against the reference's; `atol` is relative to the largest number of each."""
    exact, exact_p = x.double().requires_grad_(), p.double().requires_grad_()
    expected = reference.power_mean(exact, exact_p, EPS, negatives)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(DEVICE)
    gradients = torch.autograd.grad(expected, (exact, exact_p), grad)
    pooled, saved = path.forward(x, p, EPS, negatives, True)
    dx, dp = path.backward(grad.float(), x, p, pooled, saved, EPS, negatives, (True, True))
    assert dx is not None
    assert dp is not None
    assert (pooled.dtype, dx.dtype, dp.dtype) == (torch.float32, x.dtype, p.dtype)
    assert dx.is_contiguous()
    # Where the exponents' gradient vanishes, what is left is a rounding error of the values.
    size = expected.abs().max().item()
    compare("value", pooled, expected, rtol, atol * size)
    # The interpreter cuts bfloat16 off where a GPU rounds.
    compare("tokens", dx, gradients[0], max(rtol, torch.finfo(x.dtype).eps), atol * gradients[0].abs().max().item())
    compare("exponents", dp, gradients[1], rtol, atol * max(gradients[1].abs().max().item(), 0.1 * size))


def compare(name: str, ours: Tensor, exact: Tensor, rtol: float, atol: float) -> None:
    worst = ((ours.double() - exact).abs() - rtol * exact.abs() - atol).max().item()
    assert worst <= 0, f"{name}: {worst:.3g} past the tolerance, largest {exact.abs().max().item():.3g}"


@pytest.mark.usefixtures("_quiet")
class TestPrograms:
    __test__ = CUDA or INTERPRETED

    @pytest.mark.parametrize("negatives", NEGATIVES)
    @pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0, 100.0])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_values_and_gradients(self, negatives: str, exponent: float, dtype: torch.dtype) -> None:
        check(tokens(2, 33, 20, dtype=dtype), exponents(exponent, 20), negatives)

    @pytest.mark.parametrize("negatives", NEGATIVES)
    @pytest.mark.parametrize("shape", [(1, 1, 5), (2, 7, 33), (1, 8, 96), (1, 196, 8), (1, 300, 8), (2, 700, 3)])
    def test_shapes(self, negatives: str, shape: tuple[int, int, int]) -> None:
        check(tokens(*shape), exponents(3.0, shape[2]), negatives)

    @pytest.mark.parametrize("negatives", NEGATIVES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("patches", [1, 5, 40, 700])
    def test_zeros_and_channels_of_one_sign(self, negatives: str, dtype: torch.dtype, patches: int) -> None:
        x = tokens(1, patches, 6, dtype=dtype).clone()
        x[..., :2].abs_()
        x[..., 2:4].abs_().neg_()
        x[:, ::3, 1::2] = 0
        x[:, 1::3, 1::2] = -0.0
        check(x, exponents(3.0, 6), negatives)

    def test_zeros_have_no_sign(self) -> None:
        # With so small an exponent, the floor of the others would count.
        x = torch.tensor([0.0, 1.0, -0.0, 0.5, -2.0], device=DEVICE)[None, :, None]
        check(x, torch.tensor([0.1], device=DEVICE), "signed")

    @pytest.mark.parametrize("negatives", NEGATIVES)
    def test_half_precision(self, negatives: str) -> None:
        check(tokens(1, 9, 5, dtype=torch.float16), exponents(3.0, 5), negatives)

    @pytest.mark.parametrize("negatives", NEGATIVES)
    def test_any_strides(self, negatives: str) -> None:
        x = tokens(2, 8, 6)
        for same in (x.transpose(1, 2).contiguous().transpose(1, 2), x.transpose(0, 1).contiguous().transpose(0, 1)):
            check(same, exponents(3.0, 6), negatives)
        check(x[::2, ::3, ::2], exponents(3.0, 3), negatives)

    @pytest.mark.parametrize("negatives", NEGATIVES)
    @pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e4, 1e18, 1e37])
    @pytest.mark.parametrize("exponent", [0.5, 3.0, 100.0])
    def test_range_of_values(self, negatives: str, scale: float, exponent: float) -> None:
        x, p = tokens(1, 5, 4, scale=scale), torch.full((4,), exponent, device=DEVICE)
        check(x, p, negatives)

    @pytest.mark.parametrize("exponent", [0.5, 1.0, 100.0])
    @pytest.mark.parametrize("negatives", ["clamp", "signed"])
    def test_the_largest_numbers_of_bf16(self, negatives: str, exponent: float) -> None:
        top = torch.finfo(torch.bfloat16).max
        x = torch.tensor([top, top / 2, 1.0, 0.0, -1.0], device=DEVICE, dtype=torch.bfloat16)
        x = torch.stack([x, torch.full_like(x, top), x.flip(0)], -1)[None]
        p = torch.full((3,), exponent, device=DEVICE)
        pooled, saved = path.forward(x, p, EPS, negatives, True)
        expected = reference.power_mean(x.double(), p.double(), EPS, negatives)
        torch.testing.assert_close(pooled.double(), expected, rtol=1e-4, atol=0)
        for gradient in path.backward(torch.ones_like(pooled), x, p, pooled, saved, EPS, negatives, (True, True)):
            assert gradient is not None
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("negatives", NEGATIVES)
    @pytest.mark.parametrize("value", [0.75, 0.0, -2.0])
    def test_constant_channels(self, negatives: str, value: float) -> None:
        x = torch.full((1, 5, 2), value, device=DEVICE)
        p = torch.tensor([100.0, 0.5], device=DEVICE)
        pooled, saved = path.forward(x, p, EPS, negatives, True)
        expected = x[:, 0] if negatives != "clamp" else x[:, 0].clamp(min=EPS)
        torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-12)
        dx, dp = path.backward(torch.ones_like(pooled), x, p, pooled, saved, EPS, negatives, (True, True))
        assert dx is not None
        assert dp is not None
        # A constant is its own power mean whatever p is; tokens below the floor, and zeros under `signed`, don't count.
        share = 0.0 if (negatives == "clamp" and value < EPS) or (negatives == "signed" and value == 0) else 1 / 5
        torch.testing.assert_close(dx, torch.full_like(dx, share), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(dp, torch.zeros_like(dp), rtol=0, atol=1e-5)

    def test_equal_minima_share_what_shift_leaves_of_the_gradient(self) -> None:
        x = torch.tensor([1.0, -2.0, 0.5, -2.0, -2.0], device=DEVICE)[None, :, None]
        check(x, torch.tensor([3.0], device=DEVICE), "shift")
        pooled, saved = path.forward(x, torch.ones(1, device=DEVICE), EPS, "shift", False)
        dx, _ = path.backward(
            torch.ones(1, 1, device=DEVICE), x, torch.ones(1), pooled, saved, EPS, "shift", (True, False)
        )
        torch.testing.assert_close(dx, torch.full_like(x, 1 / 5))

    def test_tokens_at_the_floor_or_below_get_no_gradient(self) -> None:
        x = torch.tensor([0.5, 0.25, 0.2499, -1.0], device=DEVICE)[None, :, None]
        p = torch.tensor([1.0], device=DEVICE)
        pooled, saved = path.forward(x, p, 0.25, "clamp", True)
        dx, _ = path.backward(torch.ones_like(pooled), x, p, pooled, saved, 0.25, "clamp", (True, True))
        assert dx is not None
        torch.testing.assert_close(dx.flatten(), torch.tensor([0.25, 0.0, 0.0, 0.0], device=DEVICE))

    @pytest.mark.parametrize("negatives", NEGATIVES)
    def test_only_what_is_wanted(self, negatives: str) -> None:
        x, p = tokens(1, 5, 4), exponents(3.0, 4)
        pooled, saved = path.forward(x, p, EPS, negatives, False)
        assert saved.derivative is None
        assert (saved.scale is None) == (saved.other is None) == (negatives == "clamp")
        full, fully_saved = path.forward(x, p, EPS, negatives, True)
        assert torch.equal(pooled, full)
        grad = torch.ones_like(pooled)
        dx, dp = path.backward(grad, x, p, pooled, saved, EPS, negatives, (True, False))
        assert dp is None
        assert torch.equal(dx, path.backward(grad, x, p, full, fully_saved, EPS, negatives, (True, True))[0])
        dx, dp = path.backward(grad, x, p, full, fully_saved, EPS, negatives, (False, True))
        assert dx is None
        assert torch.equal(dp, fully_saved.derivative.sum(0))

    @pytest.mark.parametrize("negatives", NEGATIVES)
    @pytest.mark.parametrize("patches", [9, 700])
    def test_nan_is_not_hidden(self, negatives: str, patches: int) -> None:
        x = tokens(1, patches, 3)
        x[0, 4, 1] = float("nan")
        pooled, _ = path.forward(x, exponents(3.0, 3), EPS, negatives, False)
        assert pooled.isnan().tolist() == [[False, True, False]]

    def test_float64_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"expected float32, bfloat16 or float16 tokens, got torch\.float64"):
            path.forward(tokens(1, 5, 4, dtype=torch.float64), exponents(3.0, 4), EPS, "clamp", True)
