"""Metrics of single-label classification under CLIP_benchmark's names and definitions, with their chance levels.

torchmetrics does not compute these figures: its macro recall counts classes that are predicted but have no image, its
acc1 takes argmax where CLIP_benchmark takes the first of topk(5), and it has no positions and no bounds for ties.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation

_CHUNK = 1024
"""Images scored at a time."""
_TOP = 5


def zeroshot_metrics(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"], labels: Sequence[int]
) -> Evaluation:
    """Return the `classification_metrics` of images against class embeddings.

    Args:
        images: embeddings of unit length.
        classes: embeddings of unit length.
        labels: the class of each image.
    """
    return classification_metrics(_scores(images, classes), torch.tensor(labels), len(classes))


def classification_metrics(
    scores: Iterable[Float[Tensor, "_ classes"]], labels: Int64[Tensor, " images"], classes: int, prefix: str = ""
) -> Evaluation:
    """Return acc1, acc5 (with five classes or more) and mean_per_class_recall (over the classes that occur).

    Ties are broken as CLIP_benchmark breaks them: by torch.topk for the accuracies, by torch.argmax for the recall.
    `pessimistic` ranks everything that ties with the right class before it. Outcomes: `label`, `predicted` (argmax),
    `position` of the right class (1: first) and `pessimistic_position`. A right class that can't be predicted has the
    position after the last class.

    Args:
        scores: scores of the images, chunk after chunk, on the CPU; -inf for a class that can't be predicted.
        labels: the class of each image.
        classes: number of classes.
        prefix: what the metrics' names begin with.
    """
    parts, start = [], 0
    for chunk in scores:
        parts.append(_positions(chunk, labels[start : start + len(chunk)], _TOP if classes >= _TOP else 1))
        start += len(chunk)
    predicted, position, worst = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    truth = labels.numpy()
    metrics = {f"{prefix}acc1": float((position == 1).mean())}
    pessimistic = {f"{prefix}acc1": float((worst == 1).mean())}
    metrics[f"{prefix}mean_per_class_recall"] = mean_per_class_recall(truth, predicted == truth)
    pessimistic[f"{prefix}mean_per_class_recall"] = mean_per_class_recall(truth, worst == 1)
    chance = dict.fromkeys(metrics, 1 / classes)
    if classes >= _TOP:
        metrics[f"{prefix}acc5"] = float((position <= _TOP).mean())
        pessimistic[f"{prefix}acc5"] = float((worst <= _TOP).mean())
        chance[f"{prefix}acc5"] = _TOP / classes
    outcomes = {"label": truth, "predicted": predicted, "position": position, "pessimistic_position": worst}
    return Evaluation(
        metrics, chance, {name: each.astype(np.int32) for name, each in outcomes.items()}, pessimistic=pessimistic
    )


def mean_per_class_recall(labels: NDArray[np.integer], right: NDArray[np.bool_]) -> float:
    """Return the share of right images of each class, averaged over the classes that occur."""
    counts = np.bincount(labels)
    return float((np.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]).mean())


def class_tables(outcomes: Mapping[str, NDArray], classnames: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return two tables: `per_class` with size, recall and most frequent error, `confusion` with the nonzero cells.

    Args:
        outcomes: the outcomes of `classification_metrics`.
        classnames: in the order of labels.
    """
    labels, predicted = outcomes["label"].astype(np.int64), outcomes["predicted"].astype(np.int64)
    classes = len(classnames)
    cells, sizes = np.unique(labels * classes + predicted, return_counts=True)
    confusion = [["label", "predicted", "n", "class", "predicted_class"]]
    wrong: dict[int, tuple[int, int]] = {}
    for cell, size in zip(cells.tolist(), sizes.tolist(), strict=True):
        label, other = divmod(cell, classes)
        confusion.append([str(label), str(other), str(size), classnames[label], classnames[other]])
        if other != label and size > wrong.get(label, (0, 0))[1]:
            wrong[label] = (other, size)
    counts = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels, weights=labels == predicted, minlength=classes).astype(np.int64)
    top = np.bincount(labels, weights=outcomes["position"] <= _TOP, minlength=classes)
    rows = [["label", "class", "n", "correct", "recall", "acc5", "most_confused_with", "times"]]
    for label, name in enumerate(classnames):
        n, other = int(counts[label]), wrong.get(label)
        recall = f"{correct[label] / n:.6f}" if n else ""
        acc5 = f"{top[label] / n:.6f}" if n and classes >= _TOP else ""
        error = [classnames[other[0]], str(other[1])] if other else ["", ""]
        rows.append([str(label), name, str(n), str(correct[label]), recall, acc5, *error])
    return {"per_class": rows, "confusion": confusion}


def class_embeddings(prompts: Float[Tensor, "prompts embed"], classes: int) -> Float[Tensor, "classes embed"]:
    """Return for each class the mean over its prompts, of unit length (Radford et al., arXiv 2103.00020, sec. 3.1.4).

    Args:
        prompts: embeddings, class after class, all templates of a class together.
        classes: number of classes.
    """
    return F.normalize(prompts.view(classes, -1, prompts.shape[1]).mean(1), dim=-1)


def first_twins(classes: Float[Tensor, "classes embed"]) -> Int64[Tensor, " classes"]:
    """Return for every class the first one with the same embedding: itself, where no other class has it."""
    _, group = classes.unique(dim=0, return_inverse=True)
    return torch.full_like(group, len(group)).scatter_reduce(0, group, torch.arange(len(group)), "amin")[group]


def _scores(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"]
) -> Iterator[Float[Tensor, "_ classes"]]:
    """Yield chunks of 100 · cosine, as CLIP_benchmark computes it.

    Equal classes get equal scores: a matrix product rounds some of several equal columns differently.
    """
    twins = first_twins(classes)
    alike = bool((twins != torch.arange(len(classes))).any())
    for chunk in images.split(_CHUNK):
        scores = (100 * chunk) @ classes.T
        yield scores[:, twins] if alike else scores


def _positions(scores: Tensor, labels: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the predicted class, the right class's position, and its position behind everything that ties with it."""
    right = scores.gather(1, labels[:, None])
    found = scores.topk(depth, dim=1).indices == labels[:, None]
    behind = ((scores > right).sum(1) + 1).clamp(min=depth + 1)
    position = torch.where(found.any(1), found.int().argmax(1) + 1, behind)
    never = ~right[:, 0].isfinite()
    position, worst = (each.masked_fill(never, scores.shape[1] + 1) for each in (position, (scores >= right).sum(1)))
    return scores.argmax(1), position, worst
