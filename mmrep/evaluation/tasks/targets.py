"""The classes of images that have several or none."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from mmrep.data.tar import DataError
from mmrep.evaluation.scoring.multilabel import METRIC, OCCURRING
from mmrep.evaluation.sources.records import Records

LOG = logging.getLogger("mmrep")


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
            where, len(absent), len(classnames), METRIC, ", ".join(absent[:5]), OCCURRING,
        )  # fmt: skip
