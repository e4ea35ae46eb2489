"""The protocol of Revisited Oxford and Paris (Radenović et al., arXiv 1803.11285, section 3): easy, medium, hard.

The setup decides which images are right and which are ignored. Ignored images are removed from a query's results before
its average precision (by trapezoids) and its precision at k are computed.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.scoring.order import QueryScores, average_precision, chance_precision, orders, worst
from mmrep.evaluation.sources.ground_truth import GroundTruth, Query

SETUPS = {"easy": ("easy",), "medium": ("easy", "hard"), "hard": ("hard",)}
"""The grades that are right in each setup; the others are ignored."""
PRECISION_AT = (1, 5, 10)


def score_queries(
    queries: Float[Tensor, "queries embed"],
    gallery: Float[Tensor, "gallery embed"],
    truth: GroundTruth,
    reranking: InstanceConfig | None = None,
) -> QueryScores:
    """Return average precision (`easy_map`) and precision at k (`easy_mp@1`, …) of every query in every setup.

    Args:
        queries: embeddings of unit length, in the order of `truth.queries`.
        gallery: embeddings of unit length, in the order of `truth.gallery`.
        truth: the ground truth.
        reranking: options of SuperGlobal's reranking; None: no reranking.
    """
    figures = ("map", *(f"mp@{k}" for k in PRECISION_AT))
    found = QueryScores.empty([f"{setup}_{figure}" for setup in SETUPS for figure in figures], len(truth.queries))
    for rows, order in orders(queries, gallery, reranking=reranking):
        for i, positions, tied in zip(rows, order.positions, order.tied, strict=True):
            for setup in SETUPS:
                right, kept = _graded(truth.queries[i], setup, len(truth.gallery))
                relevant, places = int(right.sum()), int(kept.sum())
                if not relevant:
                    continue
                counted = kept[positions]
                ranked, ties = right[positions][counted][None], _ties(tied, counted)[None]
                parts = (_scores(ranked), _scores(worst(ranked, ties)), _chance(relevant, places))
                for arrays, values in zip(found, parts, strict=True):
                    for figure, value in zip(figures, values, strict=True):
                        arrays[f"{setup}_{figure}"][i] = value
    return found


def _graded(query: Query, setup: str, gallery: int) -> tuple[Bool[Tensor, " gallery"], Bool[Tensor, " gallery"]]:
    """Return which gallery images are right for a query, and which are not ignored."""
    right, kept = torch.zeros(gallery, dtype=torch.bool), torch.ones(gallery, dtype=torch.bool)
    for grade in ("easy", "hard", "junk"):
        (right if grade in SETUPS[setup] else kept)[torch.from_numpy(getattr(query, grade))] = grade in SETUPS[setup]
    return right, kept


def _ties(tied: Bool[Tensor, " gallery"], counted: Bool[Tensor, " gallery"]) -> Bool[Tensor, " counted"]:
    """Return whether each counted result has the score of the counted one before it."""
    run = (~tied).cumsum(0)[counted]
    ties = torch.zeros(len(run), dtype=torch.bool)
    ties[1:] = run[1:] == run[:-1]
    return ties


def _scores(right: Bool[Tensor, "1 places"]) -> list[float]:
    """Return average precision, and precision at each k, or at the last right result where that ranks before k."""
    relevant = right.sum(1).double()
    last = int(right[0].nonzero().max()) + 1
    depths = [min(last, k) for k in PRECISION_AT]
    precisions = [float(right[0, :depth].double().mean()) for depth in depths]
    return [float(average_precision(right, relevant, trapezoid=True)), *precisions]


def _chance(relevant: int, places: int) -> list[float]:
    """Return the expected figures of a random order.

    With R of n right, the expected precision before a right result is (R-1)/(n-1) wherever it is, except 1 at the first
    place. So the trapezoids give the mean of R/n and of the expected average precision. The precision at k is R/n,
    except for orders whose last right result is at m < k, which have R/m instead of R/k.
    """
    (plain,) = chance_precision(np.array([relevant]), np.array([places]))
    values = [(float(plain) + relevant / places) / 2]
    orders_of_right = math.comb(places, relevant)
    for k in PRECISION_AT:
        early = sum(
            math.comb(m - 1, relevant - 1) * (relevant / m - relevant / k) for m in range(relevant, min(k, places) + 1)
        )
        values.append(relevant * min(k, places) / (places * k) + early / orders_of_right)
    return values
