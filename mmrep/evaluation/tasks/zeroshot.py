"""Zero-shot classification: images against class names in templates; predictions on many views of every image."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from mmrep.config.checks import MmrepError, require
from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Centre, View, Views, embed_images, embed_texts
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import class_embeddings, class_tables, first_twins, zeroshot_metrics
from mmrep.evaluation.scoring.multilabel import METRIC, OCCURRING, multilabel_metrics
from mmrep.evaluation.sets import EvalSet
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder

LOG = logging.getLogger("mmrep")

_NAMED = 10


def zeroshot(context: Context) -> list[Evaluation]:
    """Return zero-shot classification metrics of every model.

    Raises:
        ConfigError: the set has no classes.
        DataError: a label that no class has.
    """
    evalset = context.evalset
    require(
        bool(evalset.classnames and evalset.templates),
        f"evaluation set {evalset.name}: task zeroshot needs classes, but the set has no class names or no templates",
    )
    texts = prompts(evalset)
    classes = [
        class_embeddings(context.encode_texts(model, texts), len(evalset.classnames))
        for model in context.models.values()
    ]
    if evalset.multilabel:
        targets = targets_of(evalset.records, len(evalset.classnames), evalset.name)
        warn_of_absent(targets, evalset.classnames, evalset.name)
        return [
            multilabel_metrics(images, own, targets, evalset.classnames)
            for images, own in zip(context.images, classes, strict=True)
        ]
    found = []
    for images, own in zip(context.images, classes, strict=True):
        each = zeroshot_metrics(images, own, context.labels)
        found.append(each._replace(tables=class_tables(each.outcomes, evalset.classnames)))
    _warn_of_ties(context, found, classes)
    return found


def embed_classes(model: DualEncoder, evalset: EvalSet, text_batch: int) -> Float[Tensor, "classes embed"]:
    """Return the class embeddings of a set: the mean over the templates of each class, of unit length."""
    return class_embeddings(embed_texts(model, prompts(evalset), text_batch), len(evalset.classnames))


def prompts(evalset: EvalSet) -> list[str]:
    """Return the class names in the templates: class after class, all templates of a class together."""
    return [template.replace("{c}", name) for name in evalset.classnames for template in evalset.templates]


def _warn_of_ties(context: Context, found: Sequence[Evaluation], classes: Sequence[Tensor]) -> None:
    """Warn where ties change a metric, with the number of images and the classes that have one embedding."""
    tied = {
        name: int((each.outcomes["position"] != each.outcomes["pessimistic_position"]).sum())
        for name, each in zip(context.models, found, strict=True)
        if each.metrics != each.pessimistic
    }
    if not tied:
        return
    names: dict[str, None] = {}
    for own in classes:
        for label, first in enumerate(first_twins(own).tolist()):
            if first != label:
                names[context.evalset.classnames[first]] = None
    LOG.warning(
        "evaluation set %s: a wrong class ties with the right one (%s), which the metrics break as CLIP_benchmark does "
        "and 'pessimistic' counts as wrong; classes with one embedding: %s",
        context.evalset.name,
        ", ".join(f"{name}: {count} of {len(context.labels)} images" for name, count in tied.items()),
        ", ".join(list(names)[:_NAMED]) + (" …" if len(names) > _NAMED else "") if names else "none",
    )


def targets_of(records: Records, classes: int, where: str) -> Bool[Tensor, "images classes"]:
    """Return which classes every image has.

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
    """Warn of classes without images, since each counts 0 in the mean.

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


_TOP = 5
"""CLIP_benchmark takes acc1 from topk(5); which of equal scores topk(k) puts first depends on k."""


class Predictions(NamedTuple):
    """A model's predictions.

    Attributes:
        classes: the nearest class under every view; of several equally near ones, the first of torch.topk.
        tied: whether another class is equally near.
    """

    classes: Int64[ndarray, "images views"]
    tied: Bool[ndarray, "images views"]


@lru_cache(maxsize=4)
def centred(image: UInt8[Tensor, "3 height width"], centre: Centre) -> UInt8[Tensor, "3 rows columns"]:
    """Return the pixels that a model receives, computed once for all views. Never change them in place.

    The cache compares images by identity and keeps the last few alive.
    """
    return centre(image, 0)


def check_classes(context: Context, task: str) -> None:
    """Raise ConfigError unless every image of the set has one of at least two classes."""
    evalset = context.evalset
    single = evalset.task == "zeroshot" and not evalset.multilabel
    require(single, f"evaluation set {evalset.name}: task {task} needs images with one class each")
    require(len(evalset.classnames) > 1, f"evaluation set {evalset.name}: task {task} needs at least two classes")


def predict(context: Context, views: Mapping[str, Sequence[View]]) -> list[Predictions]:
    """Return zero-shot predictions of every model under each of its views.

    Every image is decoded once. A batch has as many images as the batch size holds with all their views, at least one.
    Only the predicted class of each view is kept, not an embedding, so thousands of views take little memory.

    Args:
        context: a set with classes.
        views: the views of each model, equally many for each.

    Raises:
        DataError: an image that can't be read.
        MmrepError: scores that are not finite.
    """
    config, device = context.config, next(iter(context.models.values())).device
    classes = [
        class_embeddings(context.encode_texts(model, prompts(context.evalset)), len(context.evalset.classnames))
        for model in context.models.values()
    ]
    # Equal classes get equal scores: a matrix product rounds some of several equal columns differently.
    twins = [first_twins(each).to(device) for each in classes]
    on_device = [each.to(device) for each in classes]
    distinct = list(dict.fromkeys(view for each in views.values() for view in each))

    def encode(pixels: Views) -> list[Tensor]:
        found = []
        for (name, model), own_classes, own_twins in zip(context.models.items(), on_device, twins, strict=True):
            # Views follow each other and are cut into batches. Every process has equally many of them, since the last
            # batch of a set is smaller only where all its views fit in one batch.
            images = torch.cat([pixels[view] for view in views[name]])
            scores = torch.cat(
                [model.encode_image(part.to(device)) @ own_classes.T for part in images.split(config.batch_size)]
            )[:, own_twins]
            best = scores.topk(min(_TOP, len(own_classes)))
            tied = best.values[:, 0] == best.values[:, 1]
            wrong = ~scores.isfinite().all(1)
            summary = torch.stack([best.indices[:, 0].float(), tied.float(), wrong.float()], 1)
            found.append(summary.view(len(views[name]), -1, 3).transpose(0, 1).flatten(1))
        return found

    small = replace(config, batch_size=max(1, config.batch_size // len(distinct)))
    found = embed_images(encode, distinct, context.evalset.records, small, context.evalset.name, context.quiet)
    return [_predictions(name, context.evalset.name, each) for name, each in zip(context.models, found, strict=True)]


def _predictions(model: str, evalset: str, summary: Tensor) -> Predictions:
    columns = summary.view(len(summary), -1, 3).numpy()
    if columns[:, :, 2].any():
        raise MmrepError(f"model {model}: its scores on {evalset} are not finite; did training diverge?")
    return Predictions(columns[:, :, 0].astype(np.int64), columns[:, :, 1] > 0)
