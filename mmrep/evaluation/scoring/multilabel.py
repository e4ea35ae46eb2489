"""Average precision where an image has several classes or none, as CLIP_benchmark defines it, with its chance level.

torchmetrics' MultilabelAveragePrecision counts images that tie as one threshold; CLIP_benchmark ranks them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.nearest import product
from mmrep.evaluation.scoring.order import average_precision, chance_precision

METRIC = "mean_average_precision"
OCCURRING = "mean_average_precision_of_occurring_classes"

_CLASSES = 64
"""Classes scored at a time, for all images."""


def multilabel_metrics(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"],
    targets: Bool[Tensor, "images classes"], classnames: Sequence[str],
) -> Evaluation:  # fmt: skip
    """Return mean_average_precision: each class's average precision, averaged over the classes.

    Images that tie are in the order of torch.sort, as in CLIP_benchmark, where a class without images counts 0. If
    there are such classes, the further figures have the mean without them. `pessimistic` ranks the images of a class
    behind those that tie with them. Outcomes, for every image and class that belong together: `image_of_positive`,
    `class_of_positive`, and the image's rank by the score of the class (`positive_position`, 1: first, and
    `positive_pessimistic_position`).

    Args:
        images: embeddings of unit length.
        classes: embeddings of unit length.
        targets: which classes every image has.
        classnames: in the order of the classes.
    """
    counts = targets.sum(0)
    places: tuple[list[Tensor], list[Tensor]] = [], []
    precisions: tuple[list[Tensor], list[Tensor]] = [], []
    for start in range(0, len(classes), _CLASSES):
        block = slice(start, start + _CLASSES)
        for scores, own in zip(product(100 * images, classes[block]).T, targets[:, block].T, strict=True):
            behind = own.to(torch.uint8).argsort(stable=True)
            plain = scores.sort(descending=True).indices
            last = behind[scores[behind].sort(descending=True, stable=True).indices]
            relevant = own.sum()[None].clamp(min=1).double()
            for nth, order in enumerate((plain, last)):
                places[nth].append(_places(order, own))
                precisions[nth].append(average_precision(own[order][None], relevant))
    precision, worst = (torch.cat(each).numpy() for each in precisions)
    chance = chance_precision(counts.clamp(min=1).numpy(), np.full(len(classes), len(images)))
    occurring = (counts > 0).numpy()
    found = Evaluation(
        {METRIC: float(precision.mean())},
        {METRIC: float(np.where(occurring, chance, 0).mean())},
        {
            "class_of_positive": torch.arange(len(classes)).repeat_interleave(counts).numpy().astype(np.int32),
            "image_of_positive": targets.T.nonzero()[:, 1].numpy().astype(np.int32),
            "positive_position": torch.cat(places[0]).numpy().astype(np.int32),
            "positive_pessimistic_position": torch.cat(places[1]).numpy().astype(np.int32),
        },
        pessimistic={METRIC: float(worst.mean())},
        tables={"per_class": _table(classnames, counts.tolist(), precision.tolist())},
    )
    if occurring.all() or not occurring.any():
        return found
    return found._replace(further={OCCURRING: float(precision[occurring].mean())})


def _places(order: Int64[Tensor, " images"], own: Bool[Tensor, " images"]) -> Int64[Tensor, " own"]:
    """Return the ranks of a class's images in an order of all images."""
    place = torch.empty_like(order)
    place[order] = torch.arange(1, len(order) + 1)
    return place[own]


def _table(classnames: Sequence[str], counts: list[int], precision: list[float]) -> list[list[str]]:
    rows = [["label", "class", "n", "average_precision"]]
    for label, (name, count, value) in enumerate(zip(classnames, counts, precision, strict=True)):
        rows.append([str(label), name, str(count), f"{value:.6f}" if count else ""])
    return rows
