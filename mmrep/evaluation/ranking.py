"""Metrics of image-text retrieval under CLIP_benchmark's names and definitions, with their chance levels."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation

RECALL_AT = (1, 5, 10)
_CHUNK = 1024


def top_hits(
    queries: Float[Tensor, "queries embed"], gallery: Float[Tensor, "gallery embed"], owner: Int64[Tensor, " gallery"],
    wanted: Int64[Tensor, " queries"], depth: int,
) -> Int64[Tensor, " queries"]:  # fmt: skip
    """Where among the `depth` nearest gallery rows the first right one stands (1 = nearest); 0: not among them.

    Ties are broken as torch.topk breaks them, as in CLIP_benchmark. No queries × gallery matrix is held: chunks of
    queries.

    Args:
        queries: embeddings of unit length.
        gallery: embeddings of unit length.
        owner: what each gallery row belongs to.
        wanted: what each query looks for.
        depth: how many are looked at.
    """
    found = []
    for start in range(0, len(queries), _CHUNK):
        scores = queries[start : start + _CHUNK] @ gallery.T
        nearest = scores.topk(min(depth, len(gallery)), dim=1).indices
        right = owner[nearest] == wanted[start : start + _CHUNK, None]
        found.append(torch.where(right.any(1), right.int().argmax(1) + 1, 0))
    return torch.cat(found)


def retrieval_metrics(
    images: Float[Tensor, "images embed"], texts: Float[Tensor, "texts embed"], image_of_text: Int64[Tensor, " texts"]
) -> Evaluation:
    """image_retrieval_recall@k: share of texts whose image is among the k nearest; text_retrieval_recall@k: share
    of images with an own text among the k nearest."""
    numbers, depth = torch.arange(len(images)), max(RECALL_AT)
    to_image = top_hits(texts, images, numbers, image_of_text, depth).numpy()
    to_text = top_hits(images, texts, image_of_text, numbers, depth).numpy()
    own = torch.bincount(image_of_text, minlength=len(images)).tolist()
    metrics, chance = {}, {}
    for k in RECALL_AT:
        metrics[f"image_retrieval_recall@{k}"] = float(((to_image > 0) & (to_image <= k)).mean())
        metrics[f"text_retrieval_recall@{k}"] = float(((to_text > 0) & (to_text <= k)).mean())
        chance[f"image_retrieval_recall@{k}"] = min(1.0, k / len(images))
        missed = {m: _all_missed(len(texts), m, k) for m in set(own)}
        chance[f"text_retrieval_recall@{k}"] = 1 - sum(missed[m] for m in own) / len(own)
    outcomes = {
        "image_of_text": image_of_text.numpy(),
        "image_position": to_image.astype(np.int16),
        "text_position": to_text.astype(np.int16),
    }
    return Evaluation(metrics, chance, outcomes)


def _all_missed(texts: int, own: int, k: int) -> float:
    """Probability that none of `own` among `texts` is in a random choice of k."""
    return math.comb(texts - own, k) / math.comb(texts, k) if texts >= k else 0.0
