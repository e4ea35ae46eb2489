"""k nearest neighbours among the training images: exact, by cosine similarity, votes weighted by similarity."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.config.checks import require
from mmrep.config.probe import KnnConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.nearest import nearest
from mmrep.evaluation.tasks.labelled import labelled_splits

_ROWS = 512
"""Images whose votes are counted at a time."""


def knn(context: Context) -> list[Evaluation]:
    """Return knn_acc1@K of every model, with neighbours from the training split.

    Raises:
        ConfigError: no classes, no training split, or one with fewer than K images.
    """
    config = context.config.knn
    split = labelled_splits(context, "knn")
    require(
        max(config.k) <= len(split.train),
        f"evaluation.knn.k: {max(config.k)} neighbours, but the training split of {context.evalset.name} has "
        f"{len(split.train)} images; lower k",
    )
    return [
        knn_metrics(images.to(model.device), train.to(model.device), split.test, split.train, split.classes, config)
        for model, images, train in zip(context.models.values(), context.images, context.train.images, strict=True)
    ]


def knn_metrics(
    images: Float[Tensor, "images embed"], train: Float[Tensor, "train embed"],
    labels: Int64[Tensor, " images"], train_labels: Int64[Tensor, " train"], classes: int, config: KnnConfig,
) -> Evaluation:  # fmt: skip
    """Return knn_acc1@K: the share of images whose own class has most votes.

    The vote of one of the K nearest neighbours weighs exp(similarity / T).

    Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", arXiv 1805.01978, section
    3.4; K = 20 and T = 0.07 as in Caron et al., "DINO", arXiv 2104.14294. Of classes with equal votes the lower one is
    predicted, and in `pessimistic` a wrong one. Outcomes: `label`, `predicted@K` and `pessimistic_right@K`.

    Args:
        images: embeddings of unit length.
        train: embeddings of unit length, on the same device.
        labels: the class of each image, on the CPU.
        train_labels: the class of each training image, on the CPU.
        classes: number of classes.
        config: numbers of neighbours, temperature.
    """
    similarities, neighbours = nearest(images, train, max(config.k))
    # Only ratios of votes matter: the nearest neighbour's is 1, so that no temperature overflows.
    weights = ((similarities - similarities[:, :1]).double() / config.temperature).exp().cpu()
    voted = train_labels[neighbours.cpu()]
    outcomes, metrics, pessimistic = {"label": labels.numpy().astype(np.int32)}, {}, {}
    for k in config.k:
        predicted, sure = _vote(weights[:, :k], voted[:, :k], labels, classes)
        outcomes[f"predicted@{k}"] = predicted.numpy().astype(np.int32)
        outcomes[f"pessimistic_right@{k}"] = sure.numpy()
        metrics[f"knn_acc1@{k}"] = float((predicted == labels).double().mean())
        pessimistic[f"knn_acc1@{k}"] = float(sure.double().mean())
    return Evaluation(metrics, dict.fromkeys(metrics, 1 / classes), outcomes, pessimistic=pessimistic)


def _vote(weights: Tensor, voted: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the class of most votes, and whether the right one has more than any other."""
    predicted, sure = [], []
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        votes = torch.zeros(len(labels[rows]), classes, dtype=weights.dtype)
        votes.scatter_add_(1, voted[rows], weights[rows])
        right = votes.gather(1, labels[rows, None])
        predicted.append(votes.argmax(1))
        sure.append((votes >= right).sum(1) == 1)
    return torch.cat(predicted), torch.cat(sure)
