"""Transfer: the pre-trained image tower fine-tuned on a small labelled set, and its accuracy there.

MMCAP's table 11 reports this. The recipe is ours, since the paper's settings are unknown to us. The learning rate is
chosen on a stratified part of the training split; then a fresh copy is trained on all of it and scored once on the test
split. Every process trains a copy on all of the split. The first process's copy is scored, by all processes together.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor

from mmrep.config.checks import MmrepError, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Centre, Views, embed_images
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import mean_per_class_recall
from mmrep.evaluation.sources.records import Records
from mmrep.evaluation.tasks.finetuning import Classifier, Epoch, fine_tune
from mmrep.evaluation.tasks.labelled import labelled_splits, validation_part
from mmrep.model.dual_encoder import DualEncoder

_NOT_FINITE = -1


def finetune(context: Context) -> list[Evaluation]:
    """Fine-tune a copy of every model's image tower on the training split and score it on the set.

    Raises:
        ConfigError: a set without classes or training split, fewer than two classes, sharded weights, nothing to choose
            the learning rate on.
        DataError: an image that can't be read.
        MmrepError: training diverged.
    """
    train = set(labelled_splits(context, "finetune").train.tolist())
    require(
        len(train) > 1,
        f"evaluation set {context.train.evalset.name}: task finetune: images of fewer than two classes to train on",
    )
    from torch.distributed.tensor import DTensor  # takes a second to import

    for name, model in context.models.items():
        require(
            not any(isinstance(parameter, DTensor) for parameter in model.parameters()),
            f"model {name}: task finetune can't train weights that are sharded over processes; save the model and "
            "run `mmrep eval` on it",
        )
    return [_finetuned(name, model, context) for name, model in context.models.items()]


def _finetuned(name: str, model: DualEncoder, context: Context) -> Evaluation:
    config, records, classes = context.config, context.train.evalset.records, len(context.evalset.classnames)
    options, labels = config.finetune, context.train.labels
    lr, validated, curves = options.lrs[0], {}, {}
    if len(options.lrs) > 1:
        given = np.array(labels)
        part = validation_part(given, options.validation, options.seed)
        require(
            bool(part.any()),
            f"evaluation set {context.train.evalset.name}: too few images a class to choose finetune.lrs on; give one",
        )
        kept, held = np.flatnonzero(~part).tolist(), np.flatnonzero(part).tolist()
        for lr in options.lrs:
            classifier, curves[f"validation {lr:g}"] = fine_tune(model, records, labels, kept, classes, lr, config)
            found = _predict(classifier, records.take(held), config)
            validated[lr] = float((found == given[held]).mean())
        lr = max(options.lrs, key=lambda lr: validated[lr])
    classifier, curves[f"final {lr:g}"] = fine_tune(model, records, labels, range(len(labels)), classes, lr, config)
    found = _predict(classifier, context.evalset.records, config)
    if (found == _NOT_FINITE).any():
        raise MmrepError(
            f"model {name}: fine-tuned on {context.evalset.name} at learning rate {lr:g}, it gives scores that are not "
            "finite; set lower finetune.lrs"
        )
    evaluation = finetune_metrics(found, context.labels, classes)
    details = {
        "lr": lr,
        "validation_acc1": {f"{lr:g}": accuracy for lr, accuracy in validated.items()},
        "train_images": len(labels),
        "epochs": options.epochs,
    }
    return evaluation._replace(details=details, tables={"curves": _rows(curves)})


def finetune_metrics(found: Int64[ndarray, " images"], labels: Sequence[int], classes: int) -> Evaluation:
    """Return finetune_acc1, and finetune_mean_per_class_recall over the classes that occur.

    Args:
        found: predicted classes.
        labels: the class of each image.
        classes: number of classes.
    """
    wanted = np.asarray(labels)
    right = found == wanted
    metrics = {
        "finetune_acc1": float(right.mean()),
        "finetune_mean_per_class_recall": mean_per_class_recall(wanted, right),
    }
    return Evaluation(metrics, dict.fromkeys(metrics, 1 / classes), {"label": wanted, "prediction": found})


def _predict(classifier: Classifier, records: Records, config: EvaluationConfig) -> Int64[ndarray, " images"]:
    """Return the class of each image on every process; _NOT_FINITE where its logits are not finite."""
    view = Centre(*classifier.tower.fit)

    def encode(pixels: Views) -> list[Tensor]:
        logits = classifier(pixels[view].to(classifier.linear.weight.device))
        finite = logits.isfinite().all(1)
        return [torch.where(finite, logits.argmax(1), _NOT_FINITE).float()[:, None]]

    (found,) = embed_images(encode, [view], records, config)
    return found[:, 0].long().numpy()


def _rows(curves: dict[str, list[Epoch]]) -> list[list[str]]:
    rows = [["run", "epoch", "lr", "loss", "train_acc1"]]
    for run, curve in curves.items():
        rows += [[run, str(epoch), *map(str, each)] for epoch, each in enumerate(curve, 1)]
    return rows
