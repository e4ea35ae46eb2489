"""Exact ranks of own items in a gallery, from blocked matrix products in bounded memory.

Each direction of retrieval gets a product of its own, so that a query's scores lie in one row of one product and are
compared with nothing but each other. Counting both directions in one product is twice as fast (benchmarks/NOTES.md),
but then rounding can differ between the blocks that an image's texts lie in, which took 200 lines to repair.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from numpy import ndarray
from torch import Tensor

from mmrep.evaluation.scoring.nearest import product

BLOCK = 2**24
"""Scores held at a time."""
MIN_ROWS = 128
"""Queries scored at a time, at least: with fewer, reading the gallery takes longer than the product."""
NONE = np.iinfo(np.int32).max
"""The rank of an item that a query does not have, or whose rank was not needed."""


class Ranks(NamedTuple):
    """Ranks of the own items of each query, 1 = nearest, the best item first.

    Ranks of the best own item are exact. Those of the others are exact up to the largest depth, and NONE beyond it.

    Attributes:
        place: ties in the order of the gallery.
        worst: other items that tie with an own one rank before it.
        hits: for each depth k, whether torch.topk(k) finds an own item.
    """

    place: Int32[ndarray, "queries own"]
    worst: Int32[ndarray, "queries own"]
    hits: Bool[ndarray, "queries depths"]


@torch.inference_mode()
def own_ranks(
    queries: Float[Tensor, "queries embed"],
    gallery: Float[Tensor, "gallery embed"],
    query_of_item: Int64[ndarray, " items"],
    items: Int64[ndarray, " items"],
    depths: tuple[int, ...],
) -> Ranks:
    """Return the ranks of the best own items of each query, as many as the largest depth.

    Scores are computed on the gallery's device, in fp32 or better, and counted on the CPU.

    Args:
        queries: finite embeddings; may lie in a mapped file.
        gallery: finite embeddings; may lie in a mapped file.
        query_of_item: the query that each own item belongs to. Every query has at least one.
        items: rows of the gallery.
        depths: the k of `Ranks.hits`.
    """
    order = np.lexsort((items, query_of_item))
    items, bounds = items[order], np.searchsorted(query_of_item[order], np.arange(len(queries) + 1)).tolist()
    most = min(max(depths), int(np.diff(bounds).max()))
    place, worst = np.full((2, len(queries), most), NONE, np.int32)
    tied, hits = np.zeros((len(queries), 1), bool), np.zeros((len(queries), len(depths)), bool)
    rows = min(len(queries), max(MIN_ROWS, BLOCK // len(gallery)))
    columns = gallery.to(torch.promote_types(gallery.dtype, torch.float32))
    space = columns.new_empty(rows, len(gallery))
    for start in range(0, len(queries), rows):
        block = product(queries[start : start + rows].to(columns), columns, space).cpu()
        for query, scores in enumerate(block.numpy(), start):
            own = items[bounds[query] : bounds[query + 1]]
            tied[query] = _count(scores, own, max(depths), place[query], worst[query])
            if tied[query]:  # which of equal scores torch.topk keeps depends on k
                found = [block[query - start].topk(min(k, len(gallery))).indices.numpy() for k in depths]
                hits[query] = [np.isin(own, nearest).any() for nearest in found]
    return Ranks(place, worst, np.where(tied, hits, place[:, :1] <= np.array(depths)))


def _count(
    scores: Float[ndarray, " gallery"], own: Int64[ndarray, " own"], depth: int,
    place: Int32[ndarray, " most"], worst: Int32[ndarray, " most"],
) -> bool:  # fmt: skip
    """Write the ranks of a query's own items, as far as the depth; return whether another item ties with the best."""
    values, tied = scores[own], False
    best_first = range(1) if len(own) == 1 else np.argsort(-values, kind="stable")[:depth]
    for nth, item in enumerate(best_first):
        above = np.count_nonzero(scores > values[item])
        if nth and above >= depth:
            break
        equal = scores == values[item]
        ties = np.count_nonzero(equal)
        place[nth] = 1 + above + (np.count_nonzero(equal[: own[item]]) if ties > 1 else 0)
        # Own items compete with other items, and with each other in their own order alone.
        worst[nth] = 1 + nth + above + ties - np.count_nonzero(values >= values[item])
        if nth == 0:
            tied = bool(worst[0] > 1 + above)
    return tied
