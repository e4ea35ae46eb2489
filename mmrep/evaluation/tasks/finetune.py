"""Transfer: the pre-trained image tower fine-tuned on a small labelled set, and its accuracy there.

What MMCAP's table 11 reports, by our own recipe: the paper's settings are not known to us. The learning rate is chosen
on a stratified part of the training split, then a fresh copy is trained on all of it and scored once on the test split.

Several processes train the same copy each, on all of the split, and share the scoring.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor

from mmrep.config.checks import MmrepError, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.data.draws import Purpose, permutation
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Views, embed_images
from mmrep.evaluation.embedding.views import Centre
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sources.records import Records
from mmrep.evaluation.tasks.finetuning import Classifier, Epoch, fine_tune
from mmrep.evaluation.tasks.labelled import labelled_splits
from mmrep.model.dual_encoder import DualEncoder

_NOT_FINITE = -1


def finetune(context: Context) -> list[Evaluation]:
    """Fine-tunes a copy of every model's image tower on the training split and scores it on the set.

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
    from torch.distributed.tensor import DTensor  # a second, which other tasks need not wait for

    for name, model in context.models.items():
        require(
            not any(isinstance(parameter, DTensor) for parameter in model.parameters()),
            f"model {name}: task finetune can't train weights that are sharded over processes; save the model and "
            "run `mmrep eval` on it",
        )
    return [_finetuned(name, model, context) for name, model in context.models.items()]


def split_off(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """The positions that are trained on, and those that are validated on: of each class round(share · images).

    A class keeps one image in training at least.

    Args:
        labels: of all images.
        share: of each class that is split off.
        seed: of which.
    """
    by_class: dict[int, list[int]] = {}
    for position in permutation(seed, len(labels), stream=0, purpose=Purpose.SHARDS).tolist():
        by_class.setdefault(labels[position], []).append(position)
    validation: list[int] = []
    for positions in by_class.values():
        validation += positions[: min(round(share * len(positions)), len(positions) - 1)]
    held = set(validation)
    return [position for position in range(len(labels)) if position not in held], sorted(validation)


def _finetuned(name: str, model: DualEncoder, context: Context) -> Evaluation:
    config, records, classes = context.config, context.train.evalset.records, len(context.evalset.classnames)
    options, labels = config.finetune, context.train.labels
    lr, validated, curves = options.lrs[0], {}, {}
    if len(options.lrs) > 1:
        kept, held = split_off(labels, options.validation, options.seed)
        require(
            bool(held),
            f"evaluation set {context.train.evalset.name}: too few images a class to choose finetune.lrs on; give one",
        )
        wanted = np.array([labels[position] for position in held])
        for lr in options.lrs:
            classifier, curves[f"validation {lr:g}"] = fine_tune(model, records, labels, kept, classes, lr, config)
            found = _predict(classifier, records.take(held), config)
            validated[lr] = float((found == wanted).mean())
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
    """finetune_acc1, and finetune_mean_per_class_recall over the classes that occur.

    Args:
        found: predicted classes.
        labels: of the images.
        classes: how many there are.
    """
    wanted = np.asarray(labels)
    occurring = np.bincount(wanted, minlength=classes)
    right = np.bincount(wanted, weights=found == wanted, minlength=classes)
    metrics = {
        "finetune_acc1": float((found == wanted).mean()),
        "finetune_mean_per_class_recall": float((right[occurring > 0] / occurring[occurring > 0]).mean()),
    }
    return Evaluation(metrics, dict.fromkeys(metrics, 1 / classes), {"label": wanted, "prediction": found})


def _predict(classifier: Classifier, records: Records, config: EvaluationConfig) -> Int64[ndarray, " images"]:
    """The class of each image; _NOT_FINITE where its logits are not finite. The same on every process."""
    view = Centre(*classifier.tower.size)

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
