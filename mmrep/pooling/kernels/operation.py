"""The power mean as one PyTorch operation with its own backward pass."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmrep.config.heads import Negatives
from mmrep.pooling.contract import mean_dtype
from mmrep.pooling.kernels import Saved, blocked, reference


def _path(x: Tensor) -> Any:
    """Return the module whose `forward` and `backward` serve a tensor: `triton` on NVIDIA GPUs, else `blocked`."""
    # The register limits of the Triton programs are chosen for NVIDIA GPUs.
    if x.device.type == "cuda" and torch.version.hip is None and x.dtype != torch.float64:
        try:
            from mmrep.pooling.kernels import triton
        except ImportError:
            return blocked
        return triton
    return blocked


def _or_empty(statistic: Tensor | None, like: Tensor) -> Tensor:
    """Return an empty tensor in place of None, which a PyTorch operation can't return."""
    return like.new_empty(0, dtype=mean_dtype(like)) if statistic is None else statistic


def _or_none(statistic: Tensor) -> Tensor | None:
    return None if statistic.ndim == 1 else statistic


@torch.library.custom_op("mmrep::power_mean", mutates_args=())
def _forward(
    x: Tensor, p: Tensor, eps: float, negatives: str, derivative: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pooled, saved = _path(x).forward(x, p, eps, negatives, derivative)
    return pooled, *(_or_empty(statistic, x) for statistic in saved)


@_forward.register_fake
def _(x: Tensor, _p: Tensor, _eps: float, negatives: str, derivative: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    def statistic(kept: bool) -> Tensor:
        return x.new_empty((x.shape[0], x.shape[2]) if kept else (0,), dtype=mean_dtype(x))

    further = negatives != "clamp"
    return statistic(True), statistic(derivative), statistic(further), statistic(further)


@torch.library.custom_op("mmrep::power_mean_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    p: Tensor,
    pooled: Tensor,
    saved: list[Tensor],
    eps: float,
    negatives: str,
    wants_x: bool,
    wants_p: bool,
) -> tuple[Tensor, Tensor]:
    kept = Saved(*(_or_none(statistic) for statistic in saved))
    found = _path(x).backward(grad, x, p, pooled, kept, eps, negatives, (wants_x, wants_p))
    return _or_empty(found[0], x), _or_empty(found[1], p)


@_backward.register_fake
def _(
    _grad: Tensor,
    x: Tensor,
    p: Tensor,
    _pooled: Tensor,
    _saved: list[Tensor],
    _eps: float,
    _negatives: str,
    wants_x: bool,
    wants_p: bool,
) -> tuple[Tensor, Tensor]:
    def like(tensor: Tensor, wanted: bool) -> Tensor:
        # Not empty_like: the gradient is contiguous, whatever the strides of the tokens.
        return tensor.new_empty(tensor.shape) if wanted else tensor.new_empty(0, dtype=mean_dtype(tensor))

    return like(x, wants_x), like(p, wants_p)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, p, ctx.eps, ctx.negatives, _ = inputs
    pooled, *saved = output
    ctx.save_for_backward(x, p, pooled, *saved)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    x, p, pooled, *saved = ctx.saved_tensors
    wants_x, wants_p = ctx.needs_input_grad[:2]
    dx, dp = _backward(grad.contiguous(), x, p, pooled, saved, ctx.eps, ctx.negatives, wants_x, wants_p)
    return dx if wants_x else None, dp if wants_p else None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def power_mean(
    x: Float[Tensor, "batch patches width"],
    exponent: Float[Tensor, " width"],
    eps: float,
    negatives: Negatives,
) -> Float[Tensor, "batch width"]:
    """Return the power mean that `mmrep.pooling.gem.generalized_mean` defines, in the type it is accumulated in.

    It can be differentiated once; a second derivative raises RuntimeError. An exported graph (torch.export, ONNX) holds
    plain PyTorch operations instead, so that it runs without mmrep.
    """
    if torch.compiler.is_exporting():
        return reference.power_mean(x, exponent, eps, negatives)
    derivative = torch.is_grad_enabled() and exponent.requires_grad
    pooled, *_ = cast("tuple[Tensor, ...]", _forward(x, exponent, eps, negatives, derivative))
    return pooled
