"""A matrix product in which equal fp32 vectors tie."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

NARROW = 16
"""BLAS libraries add up in another order where a side has fewer vectors than this, so that equal ones may not tie."""


def product(
    rows: Float[Tensor, "rows embed"], columns: Float[Tensor, "columns embed"], space: Tensor | None = None
) -> Float[Tensor, "rows columns"]:
    """Return the inner product of each row with each column.

    In fp32, equal vectors get equal products, however few there are. In double precision this does not hold on every
    CPU: MKL on AMD processors rounds by the place in the matrix.

    Args:
        rows: one side.
        columns: the other, of the same type and on the same device.
        space: at least as many rows, of which the first are written to; not used where a side is narrow.
    """
    count, width = len(rows), len(columns)
    if min(count, width) < NARROW:
        return (_widened(rows) @ _widened(columns).T)[:count, :width]
    return torch.mm(rows, columns.T, out=None if space is None else space[:count])


def _widened(side: Float[Tensor, "some embed"]) -> Float[Tensor, "more embed"]:
    """With zeros up to NARROW; itself, not a copy, where it has as many."""
    return side if len(side) >= NARROW else F.pad(side, (0, 0, 0, NARROW - len(side)))
