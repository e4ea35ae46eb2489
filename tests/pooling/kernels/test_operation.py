"""The power mean as an operation: against the reference, its gradients, strides, precision, torch's transformations."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmrep.pooling.kernels import blocked, reference
from mmrep.pooling.kernels.operation import power_mean

NEGATIVES = ["clamp", "shift", "signed"]


def patches(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def exponents(width: int, exponent: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.linspace(exponent, exponent * 0.9, width, dtype=dtype)


def gradients(function: object, x: Tensor, p: Tensor, negatives: str, eps: float = 1e-3) -> list[Tensor]:
    """Result, gradient of x, gradient of p, in float64."""
    x, p = x.detach().requires_grad_(), p.detach().requires_grad_()
    pooled = function(x, p, eps, negatives)  # type: ignore[operator]  # either path
    weights = torch.linspace(-1, 2, pooled.numel(), dtype=pooled.dtype).view_as(pooled)
    return [pooled.detach().double(), *(g.double() for g in torch.autograd.grad((pooled * weights).sum(), (x, p)))]


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(
    ("dtype", "value", "slope"),
    [(torch.float64, 1e-12, 1e-11), (torch.float32, 1e-6, 5e-5), (torch.bfloat16, 5e-6, 1e-2)],
)
def test_agrees_with_the_reference_in_float64(
    negatives: str, exponent: float, count: int, dtype: torch.dtype, value: float, slope: float
) -> None:
    x, p = patches(3, count, 6, dtype=dtype), exponents(6, exponent)
    expected = gradients(reference.power_mean, x.double(), p.double(), negatives)
    for found, right, tolerance in zip(
        gradients(power_mean, x, p, negatives), expected, (value, slope, 2e-5), strict=True
    ):
        scale = max(float(right.abs().max()), 0.05)
        torch.testing.assert_close(found, right, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("exponent", [0.7, 1.0, 3.0, 20.0])
def test_own_backward_against_finite_differences(negatives: str, exponent: float) -> None:
    x = patches(2, 4, 3).requires_grad_()
    p = exponents(3, exponent, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, p: power_mean(x, p, 1e-3, negatives), (x, p))


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_ties_constant_channels_and_bounds_get_the_references_gradient(negatives: str) -> None:
    x = torch.tensor([[[0.25, 1.0, 0.5, -1.0, 0.0], [2.0, 1.0, -3.0, -1.0, 0.0], [0.25, 1.0, 0.5, -1.0, 0.0]]])
    for exponent in (0.5, 1.0, 3.0):
        p = torch.full((5,), exponent)
        expected = gradients(reference.power_mean, x.double(), p.double(), negatives, eps=0.5)
        for found, right in zip(gradients(power_mean, x, p, negatives, eps=0.5), expected, strict=True):
            assert found.isfinite().all()
            torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 3e37])
@pytest.mark.parametrize("exponent", [0.05, 1.0, 3.0, 100.0])
def test_finite_over_the_range_of_values(negatives: str, dtype: torch.dtype, scale: float, exponent: float) -> None:
    x = (patches(2, 5, 4) * scale).to(dtype)
    if scale > 1:
        x[0, 0] = torch.finfo(torch.bfloat16).max
        x[1, 0] = -x[0, 0] if negatives == "signed" else x[0, 0]
        x = x.clamp(min=0) if negatives == "shift" else x  # Top minus bottom has to be a number.
    results = gradients(power_mean, x, torch.full((4,), exponent), negatives, eps=1e-6)
    assert all(result.isfinite().all() for result in results[:2])
    assert results[0].abs().max() > 0


def test_only_what_is_asked_for_is_computed() -> None:
    x, p = patches(2, 5, 3, dtype=torch.float32), torch.full((3,), 3.0)
    only_x, only_p = x.clone().requires_grad_(), p.clone().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        power_mean(only_x, p, 1e-6, "clamp").sum().backward()
    assert only_x.grad is not None
    assert [t.numel() for t in kept if t.shape[0] != 2 or t.ndim == 1] == [3, 0, 0, 0]
    power_mean(x, only_p, 1e-6, "clamp").sum().backward()
    assert only_p.grad is not None
    assert not power_mean(x, p, 1e-6, "clamp").requires_grad
    with torch.inference_mode():
        assert power_mean(x, p, 1e-6, "clamp").is_inference()


def test_keeps_the_tokens_one_statistic_and_the_result_and_copies_no_slice() -> None:
    tokens = patches(4, 10, 6, dtype=torch.float32).requires_grad_()
    p = torch.full((6,), 3.0, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        pooled = power_mean(tokens[:, 1:], p, 1e-6, "clamp")
    places = {t.untyped_storage().data_ptr() for t in kept if t.numel()}
    assert tokens.untyped_storage().data_ptr() in places
    assert sum(t.numel() for t in kept if t.untyped_storage().data_ptr() != tokens.untyped_storage().data_ptr()) == (
        p.numel() + 2 * pooled.numel()
    )
    pooled.sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[:, 0] == 0).all()


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_strides_do_not_matter(negatives: str) -> None:
    p = exponents(6, 3.0)
    whole = patches(3, 9, 12, dtype=torch.float32)
    for view in (whole[:, 1:, :6], whole[:, ::2, ::2], whole[::2].transpose(1, 2)[:, :6].transpose(1, 2)):
        assert not view.is_contiguous()
        for strided, plain in zip(
            gradients(power_mean, view, p, negatives),
            gradients(power_mean, view.contiguous(), p, negatives),
            strict=True,
        ):
            torch.testing.assert_close(strided, plain, rtol=1e-6, atol=1e-6)


def test_nan_is_not_hidden() -> None:
    x = patches(2, 5, 3, dtype=torch.float32)
    x[0, 2, 1] = float("nan")
    for negatives in NEGATIVES:
        found = power_mean(x, torch.full((3,), 3.0), 1e-6, negatives)
        assert found.isnan().nonzero().tolist() == [[0, 1]]


def test_second_derivatives_are_refused() -> None:
    x, p = patches(2, 4, 3).requires_grad_(), torch.full((3,), 3.0, requires_grad=True)
    for source in (x, p):
        (first,) = torch.autograd.grad(power_mean(x, p, 1e-3, "clamp").sum(), source, create_graph=True)
        with pytest.raises(RuntimeError, match="power_mean_backward"):
            first.sum().backward()


def test_unchanged_under_autocast() -> None:
    x, p = patches(2, 4, 3, dtype=torch.float32), torch.full((3,), 3.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(power_mean(x, p, 1e-6, "clamp"), power_mean(x, p, 1e-6, "clamp"))
        assert power_mean(x.bfloat16(), p, 1e-6, "clamp").dtype == torch.float32
        assert torch.equal(power_mean(x, p, 1e-6, "clamp"), blocked.forward(x, p, 1e-6, "clamp", False)[0])


SCRIPT = """
import torch
from mmrep.pooling.kernels import reference
from mmrep.pooling.kernels.operation import power_mean

def step(x, p):
    return power_mean(x[:, 1:] * 2, p.exp(), 1e-6, negatives)

for negatives in ("clamp", "shift", "signed"):
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape, dtype in (((2, 5, 3), torch.float32), ((4, 9, 3), torch.bfloat16)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        p = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
        for call in (step, compiled):
            pooled = call(x, p)
            result = (pooled, *torch.autograd.grad(pooled.square().sum(), (x, p)))
            if call is step:
                expected = result
        torch.testing.assert_close(result, expected)
    for grad in (False, True):
        x, p = torch.randn(2, 5, 3, requires_grad=True), torch.full((3,), 2.0, requires_grad=grad)
        torch.library.opcheck(torch.ops.mmrep.power_mean.default, (x[:, 1:], p, 1e-6, negatives, grad))

class Head(torch.nn.Module):
    def forward(self, x):
        return power_mean(x, torch.full((3,), 3.0), 1e-6, "clamp")

program = torch.export.export(Head(), (torch.randn(2, 5, 3),))
assert "mmrep" not in str(program.graph), program.graph
x = torch.randn(2, 5, 3)
torch.testing.assert_close(program.module()(x), Head()(x))
print("done")
"""


@pytest.mark.long
def test_compiled_whole_with_changing_shapes_checked_by_torch_and_exported_as_plain_operations() -> None:
    """In a process of its own, without run-time type checks, which torch.compile can't trace."""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr[-3000:]
