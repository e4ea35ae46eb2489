"""The labelled images that probes and neighbours learn from and are tested on."""

import logging
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from torch import Tensor

from mmrep.config.checks import ConfigError, require
from mmrep.evaluation.context import Context

LOG = logging.getLogger("mmrep")


class Labelled(NamedTuple):
    """Labels of two splits.

    Attributes:
        train: of the training split.
        test: of the split that is evaluated.
        classes: number of classes that the set names.
        unseen: images of the test split whose class the training split lacks.
    """

    train: Int64[Tensor, " train"]
    test: Int64[Tensor, " test"]
    classes: int
    unseen: int


def labelled_splits(context: Context, task: str) -> Labelled:
    """The labels of the training split and of the set; warns of classes that the training split lacks.

    Raises:
        ConfigError: no classes, several classes an image, no training split, or the split evaluated is it.
        DataError: a label that can't be read.
    """
    evalset = context.evalset
    where = f"evaluation set {evalset.name}: task {task}"
    require(bool(evalset.classnames), f"{where} wants classes, and the set has captions")
    require(not evalset.multilabel, f"{where} wants one class an image, and the set has several")
    config = evalset.config
    require(
        config is None or config.split != config.train_split,
        f"{where} would be fitted on the split that it is tested on; name another in train_split",
    )
    try:
        split = context.train
    except ConfigError as error:
        raise ConfigError(f"task {task} is fitted on the set's train_split: {error}") from error
    require(
        split.evalset.classnames == evalset.classnames,
        f"{where}: the training split has other class names, so labels would not mean the same",
    )
    train, test = torch.tensor(split.labels), torch.tensor(context.labels)
    unseen = ~torch.isin(test, train)
    if unseen.any():
        absent = [evalset.classnames[label] for label in test[unseen].unique().tolist()]
        LOG.warning(
            "%s: %d of %d test images are of %d classes that the training split lacks, and count as wrong: %s",
            where, int(unseen.sum()), len(test), len(absent), ", ".join(absent[:10]),
        )  # fmt: skip
    return Labelled(train, test, len(evalset.classnames), int(unseen.sum()))


def validation_part(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which samples are held out: of every class the share, rounded, drawn by Philox bits; at least one stays.

    Args:
        labels: of the samples.
        share: of each class.
        seed: of the draw.
    """
    bits = np.random.Philox(key=seed).random_raw(len(labels))
    order = np.lexsort((bits, labels))
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    held = np.zeros(len(labels), bool)
    held[order] = place < np.minimum(np.floor(counts * share + 0.5), counts - 1)[labels[order]]
    return held
