"""Labels of the training split and the test split, for tasks that are fitted."""

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
        train: labels of the training split.
        test: labels of the evaluated split.
        classes: number of classes that the set names.
        unseen: number of test images whose class the training split lacks.
    """

    train: Int64[Tensor, " train"]
    test: Int64[Tensor, " test"]
    classes: int
    unseen: int


def labelled_splits(context: Context, task: str) -> Labelled:
    """Return the labels of the training split and of the set; warn of classes that the training split lacks.

    Raises:
        ConfigError: no classes, several classes an image, no training split, or it is the evaluated one.
        DataError: a label that can't be read.
    """
    evalset = context.evalset
    where = f"evaluation set {evalset.name}: task {task}"
    require(bool(evalset.classnames), f"{where} needs classes, but the set has captions")
    require(not evalset.multilabel, f"{where} needs one class an image, but the set has several")
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
    """Return which samples to hold out for choosing hyper-parameters: a random, rounded share of every class.

    At least one sample of each class is kept for training. The draw uses Philox bits.

    Args:
        labels: the class of each sample.
        share: share of each class.
        seed: seed of the draw.
    """
    bits = np.random.Philox(key=seed).random_raw(len(labels))
    order = np.lexsort((bits, labels))
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    held = np.zeros(len(labels), bool)
    held[order] = place < np.minimum(np.floor(counts * share + 0.5), counts - 1)[labels[order]]
    return held
