"""A gallery sorted by similarity to queries; average precision and recall of such orders, and their chance levels."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.scoring.nearest import product
from mmrep.evaluation.scoring.rerank import ROUNDING, rerank

_BLOCK = 2**21
"""Scores held at a time; with their order about 40 MB."""


class QueryScores(NamedTuple):
    """Figures by name, each an array over the queries; NaN for queries that have nothing to find.

    Attributes:
        values: figures with ties in the order of the gallery.
        pessimistic: figures with ties against the right answer.
        chance: expected figures of a random order.
    """

    values: dict[str, NDArray[np.float64]]
    pessimistic: dict[str, NDArray[np.float64]]
    chance: dict[str, NDArray[np.float64]]

    @classmethod
    def empty(cls, names: Sequence[str], queries: int) -> "QueryScores":
        """Return scores that are all NaN."""
        return cls(*({name: np.full(queries, np.nan) for name in names} for _ in cls._fields))


class Order(NamedTuple):
    """The gallery sorted for some queries.

    Attributes:
        positions: rows of the gallery, nearest first.
        tied: whether each has the score of the one before it.
    """

    positions: Int64[Tensor, "queries gallery"]
    tied: Bool[Tensor, "queries gallery"]


def orders(
    queries: Float[Tensor, "queries embed"],
    gallery: Float[Tensor, "gallery embed"],
    own: bool = False,
    reranking: InstanceConfig | None = None,
) -> Iterator[tuple[range, Order]]:
    """Yield the whole gallery sorted for each query, ties by position, in blocks of queries.

    Args:
        queries: embeddings of unit length.
        gallery: embeddings of unit length.
        own: the queries are the gallery, and each leaves itself out.
        reranking: options of SuperGlobal's reranking; None: no reranking.
    """
    size = max(1, _BLOCK // max(1, len(gallery)))
    for start in range(0, len(queries), size):
        block = queries[start : start + size]
        scores = product(block, gallery)
        if own:
            rows = torch.arange(len(block))
            scores[rows, start + rows] = -torch.inf  # ranks last and is cut off below
        values, positions = scores.sort(dim=1, descending=True, stable=True)
        if own:
            values, positions = values[:, :-1], positions[:, :-1]
        tied = _tied(values)
        if reranking is not None:
            top = rerank(block, gallery, positions[:, : reranking.rerank_top], reranking.neighbours, reranking.beta)
            depth = top.positions.shape[1]
            positions = torch.cat([top.positions, positions[:, depth:]], dim=1)
            tied = torch.cat([_tied(top.scores, ROUNDING), tied[:, depth:]], dim=1)
            if depth < tied.shape[1]:
                tied[:, depth] = False  # results that were not reranked stay behind those that were
        yield range(start, start + len(block)), Order(positions, tied)


def _tied(scores: Float[Tensor, "queries gallery"], rounding: float = 0) -> Bool[Tensor, "queries gallery"]:
    tied = torch.zeros(scores.shape, dtype=torch.bool)
    tied[:, 1:] = scores[:, :-1] - scores[:, 1:] <= rounding
    return tied


def worst(right: Bool[Tensor, "queries gallery"], tied: Bool[Tensor, "queries gallery"]) -> Bool[Tensor, "_ gallery"]:
    """Return `right` in the worst order that ties allow: within each group of ties, wrong results first.

    Args:
        right: whether the result at each place is right.
        tied: whether it has the score of the one before it.
    """
    mixed = (tied[:, 1:] & (right[:, 1:] != right[:, :-1])).any(1)
    if not mixed.any():
        return right
    found = right.clone()
    keys = 2 * (~tied[mixed]).cumsum(1) + right[mixed]
    found[mixed] = right[mixed].gather(1, keys.argsort(dim=1, stable=True))
    return found


def average_precision(
    right: Bool[Tensor, "queries places"], relevant: Float64[Tensor, " queries"], trapezoid: bool = False
) -> Float64[Tensor, " queries"]:
    """Return the precision at the place of each relevant item, averaged over them; missing items count 0.

    Args:
        right: whether the item at each place is relevant.
        relevant: number of relevant items (or of those that the first k places could hold), at least 1.
        trapezoid: average the precision at each place with that before it, which is 1 at the first place. This is the
            area under the curve by trapezoids, as Oxford Buildings and the Revisited sets define it.
    """
    row, place = right.nonzero(as_tuple=True)
    nth = right.cumsum(1)[row, place].double()
    precision = nth / (place + 1)
    if trapezoid:
        before = torch.where(place == 0, 1.0, (nth - 1) / place.clamp(min=1))
        precision = (precision + before) / 2
    return torch.zeros(len(right), dtype=torch.float64).index_add_(0, row, precision) / relevant


def chance_precision(
    relevant: NDArray[np.int64], places: NDArray[np.int64], depth: int | None = None
) -> NDArray[np.float64]:
    """Return the expected average precision of random orders.

    Of n places with R relevant items, each place r is relevant with probability R/n, and then (r-1)(R-1)/(n-1) of the
    r-1 before it are. So E = Σ_r (R/n) (1 + (r-1)(R-1)/(n-1)) / r, divided by R; see Bestgen, Exact expected average
    precision of the random baseline for system evaluation (2015). With h = Σ_{r ≤ depth} 1/r the sum is
    (h + (depth - h)(R-1)/(n-1)) R / n.

    Args:
        relevant: R, at least 1.
        places: n, at least R.
        depth: k of AP@k, where the divisor is min(R, k); None: all places.
    """
    last = places if depth is None else np.minimum(depth, places)
    harmonic = np.cumsum(1 / np.arange(1, last.max() + 1))[last - 1]
    further = np.divide(relevant - 1, places - 1, out=np.zeros(len(places)), where=places > 1)
    divisor = relevant if depth is None else np.minimum(relevant, depth)
    return (harmonic + further * (last - harmonic)) * relevant / places / divisor


def chance_recall(relevant: NDArray[np.int64], places: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return the probability that k random places of n hold one of R relevant items (hypergeometric).

    Args:
        relevant: R.
        places: n.
        k: number of places.
    """
    missed = np.ones(len(places))
    for taken in range(k):
        missed *= np.clip(places - relevant - taken, 0, None) / np.clip(places - taken, 1, None)
    return 1 - missed
