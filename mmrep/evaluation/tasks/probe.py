"""Linear probe: logistic regression on frozen image embeddings, with a penalty chosen within the training split."""

import logging
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmrep.config.checks import require
from mmrep.config.probe import ProbeConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import class_tables, classification_metrics
from mmrep.evaluation.scoring.logistic import Linear, Regression
from mmrep.evaluation.tasks.labelled import Labelled, labelled_splits, validation_part

LOG = logging.getLogger("mmrep")


class Trial(NamedTuple):
    """The result of one penalty.

    Attributes:
        penalty: λ.
        accuracy: accuracy on the validation part.
        iterations: number of L-BFGS iterations.
        converged: whether the fit reached the optimum.
    """

    penalty: float
    accuracy: float
    iterations: int
    converged: bool


def linear_probe(context: Context) -> list[Evaluation]:
    """Return lp_acc1, lp_acc5 and lp_mean_per_class_recall of every model, fitted on the training split.

    Raises:
        ConfigError: no classes, no training split, or one that is too small to hold a part out.
    """
    split = labelled_splits(context, "linear_probe")
    found = []
    for (name, model), images, train in zip(context.models.items(), context.images, context.train.images, strict=True):
        where = f"evaluation set {context.evalset.name}: linear probe of {name}"
        each = probe(train, images, split, context.config.probe, model.device, where)
        found.append(each._replace(tables=class_tables(each.outcomes, context.evalset.classnames)))
    return found


def probe(
    train: Float[Tensor, "train embed"], images: Float[Tensor, "images embed"], split: Labelled, config: ProbeConfig,
    device: torch.device, where: str = "linear probe",
) -> Evaluation:  # fmt: skip
    """Choose the penalty on a part of the training images, fit all of them with it, and score the test images.

    The penalty of highest validation accuracy is chosen; of equal ones the largest.

    Args:
        train: training embeddings of unit length.
        images: test embeddings of unit length.
        split: the labels of both.
        config: penalties, validation share, seed.
        device: where to compute.
        where: prefix of warnings.

    Raises:
        ConfigError: a training split too small to hold a part out.
    """
    seen, labels = split.train.unique(return_inverse=True)
    trials: list[Trial] = []
    if len(config.penalties) > 1:
        held = validation_part(labels.numpy(), config.validation, config.seed)
        require(
            bool(held.any()),
            f"{where}: the training split has {len(labels)} images of {len(seen)} classes: none to choose the penalty "
            f"on; give one penalty in probe.penalties",
        )
        trials = _tried(train, labels, torch.from_numpy(held), config, device)
    chosen = max(trials, key=lambda trial: (trial.accuracy, trial.penalty)).penalty if trials else config.penalties[0]
    fitted = Regression(train, labels, device).fit(chosen)
    _warn(chosen, trials, fitted, where)
    scores = (_spread(part, seen, split.classes) for part in fitted.scores(images))
    details = {
        "penalty": chosen,
        "iterations": fitted.iterations,
        "converged": fitted.converged,
        "train_images": len(labels),
        "train_classes": len(seen),
        "unseen_class_images": split.unseen,
        "trials": [trial._asdict() for trial in trials],
    }
    return classification_metrics(scores, split.test, split.classes, "lp_")._replace(details=details)


def _tried(
    train: Tensor, labels: Int64[Tensor, " train"], held: Bool[Tensor, " train"], config: ProbeConfig,
    device: torch.device,
) -> list[Trial]:  # fmt: skip
    """Try every penalty from the largest down; each fit begins where the last one ended."""
    regression = Regression(train[~held], labels[~held], device)
    trials: list[Trial] = []
    fitted: Linear | None = None
    for penalty in sorted(set(config.penalties), reverse=True):
        fitted = regression.fit(penalty, fitted)
        accuracy = fitted.accuracy(train[held], labels[held])
        trials.append(Trial(penalty, accuracy, fitted.iterations, fitted.converged))
    return trials


def _spread(scores: Tensor, seen: Int64[Tensor, " seen"], classes: int) -> Tensor:
    """Return scores of all classes: −inf for classes that the training split lacks."""
    found = torch.full((len(scores), classes), -torch.inf, dtype=scores.dtype)
    found[:, seen] = scores
    return found


def _warn(chosen: float, trials: list[Trial], fitted: Linear, where: str) -> None:
    if fitted.converged and trials and chosen in (trials[0].penalty, trials[-1].penalty):
        further = "larger" if chosen == trials[0].penalty else "smaller"
        LOG.warning(
            "%s: the best penalty, %g, is at the end of those tried; add %s ones to probe.penalties",
            where, chosen, further,
        )  # fmt: skip
    stopped = [f"{trial.penalty:g}" for trial in trials if not trial.converged]
    if stopped or not fitted.converged:
        LOG.warning(
            "%s: the regression did not converge with penalty %s; leave small penalties out of "
            "probe.penalties",
            where, ", ".join(stopped or [f"{chosen:g}"]),
        )  # fmt: skip
