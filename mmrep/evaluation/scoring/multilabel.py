"""Average precision where an image has several classes or none, as CLIP_benchmark defines it, with its chance level."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from mmrep.data.tar import DataError
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sources.records import Records

LOG = logging.getLogger("mmrep")

_CLASSES = 64
"""Classes that all images are scored for at once."""
_METRIC = "mean_average_precision"
_OCCURRING = "mean_average_precision_of_occurring_classes"


def targets_of(records: Records, classes: int, where: str) -> Bool[Tensor, "images classes"]:
    """Which classes every image has.

    Raises:
        DataError: a label that no class has.
    """
    targets = torch.zeros(len(records), classes, dtype=torch.bool)
    for position in range(len(records)):
        for label in records.labels(position):
            if not 0 <= label < classes:
                raise DataError(
                    f"evaluation set {where}: sample {records.key(position)!r}: label {label}, but there are {classes} "
                    f"class names (labels count from 0)"
                )
            targets[position, label] = True
    return targets


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
    places, worst = [], []
    for start in range(0, len(classes), _CLASSES):
        block = slice(start, start + _CLASSES)
        for scores, own in zip(((100 * images) @ classes[block].T).T, targets[:, block].T, strict=True):
            places.append(_places(scores.sort(descending=True).indices, own))
            behind = own.to(torch.uint8).argsort(stable=True)
            worst.append(_places(behind[scores[behind].sort(descending=True, stable=True).indices], own))
    precision = np.array([average_precision(each.numpy()) for each in places])
    counts = targets.sum(0)
    found = Evaluation(
        {_METRIC: float(precision.mean())},
        {_METRIC: float(np.mean([_chance(int(count), len(images)) for count in counts]))},
        {
            "class_of_positive": torch.arange(len(classes)).repeat_interleave(counts).numpy().astype(np.int32),
            "image_of_positive": targets.T.nonzero()[:, 1].numpy().astype(np.int32),
            "positive_position": torch.cat(places).numpy().astype(np.int32),
            "positive_pessimistic_position": torch.cat(worst).numpy().astype(np.int32),
        },
        pessimistic={_METRIC: float(np.mean([average_precision(each.numpy()) for each in worst]))},
        tables={"per_class": _table(classnames, counts.tolist(), precision.tolist())},
    )
    occurring = (counts > 0).numpy()
    if occurring.all() or not occurring.any():
        return found
    return found._replace(further={_OCCURRING: float(precision[occurring].mean())})


def warn_of_absent(targets: Bool[Tensor, "images classes"], classnames: Sequence[str], where: str) -> None:
    """One warning where classes have no image, since each takes its share off the mean.

    Raises:
        DataError: no class has one.
    """
    absent = [name for name, any_image in zip(classnames, targets.any(0).tolist(), strict=True) if not any_image]
    if len(absent) == len(classnames):
        raise DataError(f"evaluation set {where}: no image has any class")
    if absent:
        LOG.warning(
            "evaluation set %s: %d of %d classes have no image and count 0 in %s, as in CLIP_benchmark (%s); without "
            "them: %s",
            where, len(absent), len(classnames), _METRIC, ", ".join(absent[:5]), _OCCURRING,
        )  # fmt: skip


def average_precision(places: NDArray[np.integer]) -> float:
    """The mean over a class's images, at places p₁ < p₂ < …, of i / pᵢ; 0 for none.

    Buckley and Voorhees, "Evaluating evaluation measure stability", SIGIR 2000, section 2.
    """
    return float((np.arange(1, len(places) + 1) / np.sort(places)).mean()) if len(places) else 0.0


def _places(order: Int64[Tensor, " images"], own: Bool[Tensor, " images"]) -> Int64[Tensor, " own"]:
    """The places of a class's images in an order of all, in the images' own order."""
    place = torch.empty_like(order)
    place[order] = torch.arange(1, len(order) + 1)
    return place[own]


def _chance(own: int, images: int) -> float:
    """The expected average precision of a random order: (H/n)(1 − q) + q with H = Σ 1/i and q = (own − 1)/(n − 1).

    Bestgen, "Exact expected average precision of the random baseline for system evaluation", PBML 103, 2015.
    """
    if own == 0:
        return 0.0
    share = (own - 1) / max(images - 1, 1)
    harmonic = float((1 / np.arange(1, images + 1)).mean())
    return harmonic * (1 - share) + share


def _table(classnames: Sequence[str], counts: list[int], precision: list[float]) -> list[list[str]]:
    rows = [["label", "class", "n", "average_precision"]]
    for label, (name, count, value) in enumerate(zip(classnames, counts, precision, strict=True)):
        rows.append([str(label), name, str(count), f"{value:.6f}" if count else ""])
    return rows
