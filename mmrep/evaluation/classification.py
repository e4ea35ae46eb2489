"""Metrics of classification under CLIP_benchmark's names and definitions, with their chance levels."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.ranking import top_hits


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


def class_embeddings(prompts: Float[Tensor, "prompts embed"], classes: int) -> Float[Tensor, "classes embed"]:
    """Of each class the mean over its prompts, of unit length (Radford et al., arXiv 2103.00020, section 3.1.4).

    Args:
        prompts: class after class, all templates of one together.
        classes: number of classes.
    """
    return F.normalize(prompts.view(classes, -1, prompts.shape[1]).mean(1), dim=-1)
