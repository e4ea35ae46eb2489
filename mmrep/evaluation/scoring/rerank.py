"""SuperGlobal's reranking of the first results by embeddings alone (Shao et al., arXiv 2308.06954, section 3.2)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

ROUNDING = 1e-12
"""Scores no further apart than this are ties: equal descriptors get scores that differ in the last bits."""
_BLOCK = 8
"""Queries at a time: 400 results of width 512 take about 50 MB."""


class Reranked(NamedTuple):
    """First results in their new order.

    Attributes:
        positions: rows of the gallery, best first.
        scores: (S1 + S2) / 2.
    """

    positions: Int64[Tensor, "queries top"]
    scores: Float64[Tensor, "queries top"]


def rerank(
    queries: Float[Tensor, "queries embed"],
    gallery: Float[Tensor, "gallery embed"],
    first: Int64[Tensor, "queries top"],
    neighbours: int = 9,
    beta: float = 0.15,
) -> Reranked:
    """Reorder the first results of each query.

    Each descriptor x_i among them is refined by its nearest others there: x_i' = (x_i + Σ_j w_j x_j) / (1 + Σ_j w_j)
    over its K neighbours j, with w_j = β (x_i · x_j). S1 are the similarities of the query to the refined ones. The
    query is expanded to the element-wise maximum q' of the refined descriptors of the K+1 best by S1, and S2 are the
    similarities of q' to the refined ones. The order is that of (S1 + S2) / 2.

    As in the authors' code neither x_i' nor q' is normalised again. Negative similarities, which their descriptors
    can't have, get weight 0. Computed in fp64, so that ties of equal descriptors are found. A query takes O(M² D) for M
    results of width D, whatever the gallery's size.

    Args:
        queries: embeddings of unit length, of images or of texts in the same space.
        gallery: embeddings of unit length.
        first: gallery rows of each query's first results, best first, without duplicates.
        neighbours: K.
        beta: β.
    """
    parts = [
        _rerank(queries[start : start + _BLOCK], gallery, first[start : start + _BLOCK], neighbours, beta)
        for start in range(0, len(queries), _BLOCK)
    ]
    return Reranked(torch.cat([part.positions for part in parts]), torch.cat([part.scores for part in parts]))


def _rerank(
    queries: Float[Tensor, "queries embed"],
    gallery: Float[Tensor, "gallery embed"],
    first: Int64[Tensor, "queries top"],
    neighbours: int,
    beta: float,
) -> Reranked:
    top = first.shape[1]
    found = gallery[first].double()
    likeness = found @ found.mT
    likeness.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    near = likeness.topk(min(neighbours, top - 1), dim=2)
    weights = torch.zeros_like(likeness).scatter_(2, near.indices, beta * near.values.clamp(min=0))
    weights.diagonal(dim1=1, dim2=2).fill_(1)
    refined = weights @ found / weights.sum(2, keepdim=True)
    s1 = (refined @ queries.double()[:, :, None])[:, :, 0]
    best = s1.topk(min(neighbours + 1, top), dim=1).indices
    expanded = refined.gather(1, best[:, :, None].expand(-1, -1, refined.shape[2])).amax(1)
    s2 = (refined @ expanded[:, :, None])[:, :, 0]
    scores, order = ((s1 + s2) / 2).sort(dim=1, descending=True, stable=True)
    return Reranked(first.gather(1, order), scores)
