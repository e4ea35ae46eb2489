"""Zero-shot predictions on many views of every image, in the memory of one ordinary batch of images."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from mmrep.config.checks import MmrepError, require
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Centre, View, Views, embed_images
from mmrep.evaluation.scoring.classification import class_embeddings, first_twins
from mmrep.evaluation.tasks.zeroshot import prompts

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
    """Raises ConfigError unless every image of the set has one of at least two classes."""
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
