"""Metrics under CLIP_benchmark's names and definitions, with their chance levels."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

RECALL_AT = (1, 5, 10)
_CHUNK = 1024


class Evaluation(NamedTuple):
    """What an evaluator found.

    Attributes:
        metrics: by name, shares in [0, 1].
        chance: what guessing gives, by the same names.
        outcomes: for each sample or query, what happened to it.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    outcomes: dict[str, NDArray]


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


def zeroshot_metrics(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"], labels: list[int]
) -> Evaluation:
    """acc1, acc5 (with five classes or more) and mean_per_class_recall (over the classes that occur)."""
    wanted, count = torch.tensor(labels), len(classes)
    hits = top_hits(images, classes, torch.arange(count), wanted, 5).numpy()
    right = hits == 1
    occurring = np.bincount(wanted, minlength=count)
    recalls = np.bincount(wanted, weights=right, minlength=count)[occurring > 0] / occurring[occurring > 0]
    metrics = {"acc1": float(right.mean()), "mean_per_class_recall": float(recalls.mean())}
    chance = {"acc1": 1 / count, "mean_per_class_recall": 1 / count}
    if count >= 5:
        metrics["acc5"], chance["acc5"] = float((hits > 0).mean()), 5 / count
    return Evaluation(metrics, chance, {"label": np.asarray(labels), "position": hits.astype(np.int16)})


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


def class_embeddings(prompts: Float[Tensor, "prompts embed"], classes: int) -> Float[Tensor, "classes embed"]:
    """Of each class the mean over its prompts, of unit length (Radford et al., arXiv 2103.00020, section 3.1.4).

    Args:
        prompts: class after class, all templates of one together.
        classes: number of classes.
    """
    return F.normalize(prompts.view(classes, -1, prompts.shape[1]).mean(1), dim=-1)
