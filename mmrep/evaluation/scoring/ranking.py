"""Metrics of image-text retrieval under CLIP_benchmark's names and definitions, with their chance levels."""

import logging
import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64
from numpy import ndarray
from torch import Tensor

from mmrep.config.checks import MmrepError
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.ranks import own_ranks

LOG = logging.getLogger("mmrep")
RECALL_AT = (1, 5, 10)
MAP_AT = 10
_FINITE_CHUNK = 2**16
"""Embeddings checked at a time."""


def retrieval_metrics(
    images: Float[Tensor, "images embed"],
    texts: Float[Tensor, "texts embed"],
    image_of_text: Int64[Tensor, " texts"],
    name: str = "retrieval",
) -> Evaluation:
    """Return recall@k, ranks and mAP@10, from texts to images ("image retrieval") and from images to texts.

    image_retrieval_recall@k is the share of texts whose image is among the k nearest, text_retrieval_recall@k the share
    of images with an own text among the k nearest. Recall breaks ties as CLIP_benchmark does, by torch.topk(k) on the
    scores of a query, for each k by itself. Ranks (of the best own item) and `average_precision` break them by the
    order of the gallery. `pessimistic` ranks other items that tie with own ones before them.

    Outcomes, for each text (`image_…`) and each image (`text_…`): the rank `position` (1 = nearest), the rank
    `pessimistic_position` with ties against it, and `hits` for each of RECALL_AT; also `image_of_text`, and for each
    image its average precision, `text_precision` and `text_pessimistic_precision`.

    Args:
        images: embeddings.
        texts: embeddings; may lie in a mapped file.
        image_of_text: the image that each text belongs to, in any order.
        name: the set's name, for messages.

    Raises:
        MmrepError: there are no texts, an image without text, a text without image, embeddings that are not finite.
    """
    owner = image_of_text.cpu().numpy()
    own = _check(images, texts, owner, name)
    every = np.arange(len(texts))
    to_image = own_ranks(texts, images, every, owner, RECALL_AT)
    to_text = own_ranks(images, texts, owner, every, RECALL_AT)
    metrics: dict[str, float] = {}
    further: dict[str, float] = {}
    pessimistic: dict[str, float] = {}
    outcomes = {"image_of_text": owner}
    for way, found, counts in (("image", to_image, np.ones(len(texts), np.int64)), ("text", to_text, own)):
        worst_hits = found.worst[:, :1] <= np.array(RECALL_AT)
        _warn_of_ties(name, way, found.hits != worst_hits)
        precision, worst_precision = (average_precision(ranks, counts, MAP_AT) for ranks in found[:2])
        metrics |= _recalls(way, found.hits)
        further |= _rank_figures(way, found.place[:, 0], precision)
        pessimistic |= _recalls(way, worst_hits) | _rank_figures(way, found.worst[:, 0], worst_precision)
        outcomes[f"{way}_position"], outcomes[f"{way}_pessimistic_position"] = found.place[:, 0], found.worst[:, 0]
        outcomes[f"{way}_hits"] = found.hits
    outcomes |= {"text_precision": precision, "text_pessimistic_precision": worst_precision}
    return Evaluation(metrics, _chance(own, len(texts)), outcomes, further, pessimistic)


def average_precision(
    ranks: Int32[ndarray, "queries own"], own: Int64[ndarray, " queries"], k: int
) -> Float64[ndarray, " queries"]:
    """Return AP@k of each query: the sum over own items at ranks r ≤ k of (own items up to r) / r, over min(m, k).

    m is the number of own items (Manning, Raghavan & Schütze, Introduction to Information Retrieval, 2008, eq. 8.3, cut
    at k).

    Args:
        ranks: ranks of own items, best first; at least those up to k.
        own: number of own items.
        k: depth.
    """
    precision = np.arange(1, ranks.shape[1] + 1) / ranks
    return np.where(ranks <= k, precision, 0.0).sum(1) / np.minimum(own, k)


def _recalls(way: str, hits: Bool[ndarray, "queries depths"]) -> dict[str, float]:
    return {f"{way}_retrieval_recall@{k}": float(hits[:, i].mean()) for i, k in enumerate(RECALL_AT)}


def _rank_figures(
    way: str, ranks: Int32[ndarray, " queries"], precision: Float64[ndarray, " queries"]
) -> dict[str, float]:
    return {
        f"{way}_retrieval_median_rank": float(np.median(ranks)),
        f"{way}_retrieval_mean_rank": float(ranks.mean()),
        f"{way}_retrieval_map@{MAP_AT}": float(precision.mean()),
    }


def _chance(own: Int64[ndarray, " images"], texts: int) -> dict[str, float]:
    chance = {}
    sizes, images = np.unique(own, return_counts=True)
    for k in RECALL_AT:
        chance[f"image_retrieval_recall@{k}"] = min(1.0, k / len(own))
        missed = sum(
            count * _all_missed(texts, size, k) for size, count in zip(sizes.tolist(), images.tolist(), strict=True)
        )
        chance[f"text_retrieval_recall@{k}"] = 1 - missed / len(own)
    return chance


def _all_missed(texts: int, own: int, k: int) -> float:
    """Return the probability that a random choice of k of all texts has none of the `own`."""
    return math.comb(texts - own, k) / math.comb(texts, k) if texts >= k else 0.0


def _warn_of_ties(name: str, way: str, open_hits: Bool[ndarray, "queries depths"]) -> None:
    count = int(open_hits.any(1).sum())
    if count:
        LOG.warning(
            "evaluation set %s: %s retrieval: ties decide recall for %d of %d queries; `pessimistic` in the results "
            "counts ties against the model",
            name, way, count, len(open_hits),
        )  # fmt: skip


def _check(images: Tensor, texts: Tensor, owner: Int64[ndarray, " texts"], name: str) -> Int64[ndarray, " images"]:
    """Check the arguments of `retrieval_metrics` and return the number of texts of each image."""
    where = f"evaluation set {name}"
    if not len(owner):
        raise MmrepError(f"{where}: there are no texts; retrieval needs one for every image")
    if len(owner) != len(texts) or owner.min() < 0 or owner.max() >= len(images):
        raise MmrepError(
            f"{where}: expected an image from 0 to {len(images) - 1} for each of {len(texts)} texts, got {len(owner)} "
            f"from {owner.min()} to {owner.max()}"
        )
    own = np.bincount(owner, minlength=len(images))
    if not own.all():
        raise MmrepError(
            f"{where}: {(own == 0).sum()} of {len(images)} images have no text, first image {own.argmin()} (counted "
            "from 0); leave them out"
        )
    for kind, embeddings in (("image", images), ("text", texts)):
        for start in range(0, len(embeddings), _FINITE_CHUNK):
            part = embeddings[start : start + _FINITE_CHUNK]
            if part.sum().isfinite():  # several times faster than a check of each value
                continue
            finite = part.isfinite().all(1)
            if not finite.all():
                row = start + int((~finite).int().argmax())
                raise MmrepError(
                    f"{where}: the embedding of {kind} {row} (counted from 0) is not finite; did training diverge?"
                )
    return own
