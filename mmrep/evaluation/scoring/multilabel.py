"""Average precision where an image has several classes or none, as CLIP_benchmark defines it, with its chance level."""

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
"""Classes that all images are scored for at once."""


def multilabel_metrics(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"],
    targets: Bool[Tensor, "images classes"], classnames: Sequence[str],
) -> Evaluation:  # fmt: skip
    """mean_average_precision: the mean over classes of the mean over a class's images of the precision at their place.

    Images that tie stand as torch.sort leaves them, as in CLIP_benchmark; a class without images counts 0 there, and
    further figures have the mean without such classes. `pessimistic` has the images of a class behind those that tie
    with them. Outcomes: of every image and class that belong together `image_of_positive`, `class_of_positive`, and the
    place of the image among all by the score of the class (`positive_position`, 1: first, and
    `positive_pessimistic_position`).

    Args:
        images: of unit length.
        classes: of unit length.
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
    """The places of a class's images in an order of all, in the images' own order."""
    place = torch.empty_like(order)
    place[order] = torch.arange(1, len(order) + 1)
    return place[own]


def _table(classnames: Sequence[str], counts: list[int], precision: list[float]) -> list[list[str]]:
    rows = [["label", "class", "n", "average_precision"]]
    for label, (name, count, value) in enumerate(zip(classnames, counts, precision, strict=True)):
        rows.append([str(label), name, str(count), f"{value:.6f}" if count else ""])
    return rows
