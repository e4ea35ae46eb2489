"""The nearest rows of a gallery, and at which rank given rows stand, exact, in bounded memory."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.evaluation.scoring.product import product

_QUERIES, _GALLERY = 512, 16384
"""Rows of either side that are compared at once: 32 MiB of similarities."""


class OwnRanks(NamedTuple):
    """Where the one row that each query looks for stands in the gallery, 1: nearest.

    Attributes:
        place: ties in the order of the gallery.
        worst: behind all that tie with it.
    """

    place: Int64[Tensor, " queries"]
    worst: Int64[Tensor, " queries"]


def nearest(
    queries: Float[Tensor, "queries embed"], gallery: Float[Tensor, "gallery embed"], k: int
) -> tuple[Float[Tensor, "queries k"], Int64[Tensor, "queries k"]]:
    """The k gallery rows of largest inner product, largest first; of equal ones the lower index first.

    Exact, in blocks of both sides: never queries × gallery in memory.

    Args:
        queries: one side.
        gallery: the other, on the same device, with at least k rows.
        k: how many.

    Returns:
        Inner products and rows of the gallery.
    """
    parts = []
    for query in queries.split(_QUERIES):
        best = query.new_empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
        for start in range(0, len(gallery), _GALLERY):
            scores = product(query, gallery[start : start + _GALLERY])
            value, index = _top(scores, min(k, scores.shape[1]))
            # What was found before has lower indices, and stands first.
            value, index = torch.cat([best[0], value], 1), torch.cat([best[1], index + start], 1)
            value, order = value.sort(dim=1, descending=True, stable=True)
            best = value[:, :k], index.gather(1, order)[:, :k]
        parts.append(best)
    return torch.cat([value for value, _ in parts]), torch.cat([index for _, index in parts])


def own_ranks(
    queries: Float[Tensor, "queries embed"], gallery: Float[Tensor, "gallery embed"], own: Int64[Tensor, " queries"]
) -> OwnRanks:
    """The rank of one gallery row for each query, by inner product.

    Args:
        queries: one side.
        gallery: the other, on the same device.
        own: the row that each query looks for.
    """
    parts = []
    rows = max(1, _QUERIES * _GALLERY // len(gallery))
    for query, wanted in zip(queries.split(rows), own.split(rows), strict=True):
        scores = product(query, gallery)
        limit = scores.gather(1, wanted[:, None])
        earlier = torch.arange(len(gallery), device=own.device) < wanted[:, None]
        place = 1 + (scores > limit).sum(1) + ((scores == limit) & earlier).sum(1)
        parts.append((place, (scores >= limit).sum(1)))
    return OwnRanks(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _top(scores: Float[Tensor, "rows columns"], k: int) -> tuple[Tensor, Tensor]:
    """torch.topk with ties by the lower index, which topk does not promise."""
    value, index = scores.topk(k, dim=1)
    index, order = index.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    cut = (scores >= value[:, -1:]).sum(1) > k  # more tie with the last than have a place
    if cut.any():
        sorted_scores = scores[cut].sort(dim=1, descending=True, stable=True)
        value[cut], index[cut] = sorted_scores.values[:, :k], sorted_scores.indices[:, :k]
    return value, index
