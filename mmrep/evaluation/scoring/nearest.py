"""A matrix product in which equal vectors tie, and exact nearest rows of a gallery in bounded memory."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

_QUERIES, _GALLERY = 512, 16384
"""Rows of either side that are compared at a time: 32 MiB of similarities."""


def nearest(
    queries: Float[Tensor, "queries embed"], gallery: Float[Tensor, "gallery embed"], k: int
) -> tuple[Float[Tensor, "queries k"], Int64[Tensor, "queries k"]]:
    """Return the k largest inner products of each query and the rows of the gallery that they belong to.

    The largest comes first; of equal ones the lower index. Both sides are compared in blocks, so that the whole matrix
    of scores never exists.

    Args:
        queries: embeddings.
        gallery: at least k embeddings on the same device.
        k: number of rows.
    """
    parts = []
    for query in queries.split(_QUERIES):
        best = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for start in range(0, len(gallery), _GALLERY):
            scores = product(query, gallery[start : start + _GALLERY])
            value, index = _top(scores, min(k, scores.shape[1]))
            # Earlier results have lower indices, so they come first for the stable sort.
            value, index = torch.cat([best[0], value], 1), torch.cat([best[1], index + start], 1)
            value, order = value.sort(dim=1, descending=True, stable=True)
            best = value[:, :k], index.gather(1, order)[:, :k]
        parts.append(best)
    return torch.cat([value for value, _ in parts]), torch.cat([index for _, index in parts])


def _top(scores: Float[Tensor, "rows columns"], k: int) -> tuple[Tensor, Tensor]:
    """Return torch.topk with ties in the order of indices, which topk itself does not guarantee."""
    value, index = scores.topk(k, dim=1)
    index, order = index.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    cut = (scores >= value[:, -1:]).sum(1) > k  # more columns tie with the last one than fit
    if cut.any():
        sorted_scores = scores[cut].sort(dim=1, descending=True, stable=True)
        value[cut], index[cut] = sorted_scores.values[:, :k], sorted_scores.indices[:, :k]
    return value, index


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
        columns: the other side, of the same type and on the same device.
        space: a buffer with at least as many rows, whose first rows are written to; not used where a side is narrow.
    """
    count, width = len(rows), len(columns)
    if min(count, width) < NARROW:
        return (_widened(rows) @ _widened(columns).T)[:count, :width]
    return torch.mm(rows, columns.T, out=None if space is None else space[:count])


def _widened(side: Float[Tensor, "some embed"]) -> Float[Tensor, "more embed"]:
    """Return the vectors padded with zeros to NARROW."""
    return side if len(side) >= NARROW else F.pad(side, (0, 0, 0, NARROW - len(side)))
