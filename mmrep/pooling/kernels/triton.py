"""The power mean on GPUs: Triton programs that read the tokens once in each direction.

Block sizes follow a fixed rule. Tuning them on the machine would slow the first steps, and the order of the sums, and
with it the last bits of the results, could differ between runs.
"""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.config.heads import Negatives
from mmrep.pooling.kernels import Saved
from mmrep.pooling.kernels.blocked import exponent_gradient
from mmrep.pooling.kernels.triton_programs import power_mean_backward, power_mean_forward

HELD_PATCHES = 640
"""Up to this number of patches, a program holds its tile in registers."""


def _launch(
    kernel: Any, x: Tensor, exponent: Tensor, others: tuple[Tensor, ...], eps: float, **constants: str | bool
) -> None:
    """Launch a kernel with one program for each image and each 128 bytes of channels."""
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"power mean on {x.device.type}: expected float32, bfloat16 or float16 tokens, got {x.dtype}")
    batch, patches, width = x.shape
    block = 128 // x.element_size()
    # A thread takes eight bytes of a row: with sixteen, its statistics would fill the registers that the tile needs.
    # A warp takes two rows at once, so that four warps waste only 2% on 196 patches.
    twice = kernel is power_mean_backward and constants["NEGATIVES"] == "shift"
    held = patches <= (HELD_PATCHES // 2 if twice else HELD_PATCHES)
    warps = 8 if patches > 208 or twice else 4 if patches > 104 else 2
    rows = 2 * warps if held else 64
    with torch.cuda.device_of(x):
        kernel[(batch * triton.cdiv(width, block),)](
            x, exponent.to(torch.float32).contiguous(), *others, *x.stride(), patches, width, eps, **constants,
            PIECES=triton.cdiv(patches, rows) if held else 0, ROWS=rows, BLOCK=block, num_warps=warps,
            # So many registers let six programs of four warps, or three of eight, share a multiprocessor; two where the
            # tile takes more room.
            maxnreg=80 if patches <= 256 and not twice else 128, enable_fp_fusion=True,
        )  # fmt: skip


def forward(
    x: Float[Tensor, "batch patches width"],
    p: Float[Tensor, " width"],
    eps: float,
    negatives: Negatives,
    derivative: bool,
) -> tuple[Float[Tensor, "batch width"], Saved]:
    """Return the power mean and what its gradient needs, in float32. See `blocked.forward`.

    Raises:
        ConfigError: float64 tokens, since the programs calculate in float32.
    """
    pooled = x.new_empty((x.shape[0], x.shape[2]), dtype=torch.float32)
    wanted = (derivative, negatives != "clamp", negatives != "clamp")
    saved = Saved(*(torch.empty_like(pooled) if statistic else None for statistic in wanted))
    others = (pooled, *(pooled if statistic is None else statistic for statistic in saved))
    _launch(power_mean_forward, x, p, others, eps, NEGATIVES=negatives, DERIVATIVE=derivative)
    return pooled, saved


def backward(
    grad: Float[Tensor, "batch width"],
    x: Float[Tensor, "batch patches width"],
    p: Float[Tensor, " width"],
    pooled: Float[Tensor, "batch width"],
    saved: Saved,
    eps: float,
    negatives: Negatives,
    wanted: tuple[bool, bool],
) -> tuple[Float[Tensor, "batch patches width"] | None, Float[Tensor, " width"] | None]:
    """Return the gradients of the tokens (contiguous, in their type) and of the exponents. See `blocked.backward`.

    Raises:
        ConfigError: float64 tokens, since the programs calculate in float32.
    """
    grad = grad.to(torch.float32).contiguous()
    exponents = exponent_gradient(grad, saved, p) if wanted[1] else None
    tokens = None
    if wanted[0]:
        tokens = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        scale, other = (pooled if statistic is None else statistic for statistic in saved[1:])
        _launch(power_mean_backward, x, p, (grad, scale, other, tokens), eps, NEGATIVES=negatives)
    return tokens, exponents
