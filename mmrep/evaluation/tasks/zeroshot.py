"""Zero-shot classification: images against class names in templates."""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmrep.config.checks import require
from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import embed_texts
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
