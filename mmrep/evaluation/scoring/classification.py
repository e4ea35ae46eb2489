"""Metrics of single-label classification under CLIP_benchmark's names and definitions, with their chance levels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation

_CHUNK = 1024
"""Images that are scored at once."""
_TOP = 5


def zeroshot_metrics(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"], labels: Sequence[int]
) -> Evaluation:
    """acc1, acc5 (with five classes or more) and mean_per_class_recall of images against class embeddings.

    Args:
        images: of unit length.
        classes: of unit length.
        labels: the class of each image.
    """
    return classification_metrics(_scores(images, classes), torch.tensor(labels), len(classes))


def classification_metrics(
    scores: Iterable[Float[Tensor, "_ classes"]], labels: Int64[Tensor, " images"], classes: int, prefix: str = ""
) -> Evaluation:
    """acc1, acc5 (with five classes or more) and mean_per_class_recall (over the classes that occur) of scores.

    Ties are broken as CLIP_benchmark breaks them: by torch.topk for the accuracies, by torch.argmax for the recall.
    `pessimistic` has whatever ties with the right class before it. Outcomes: `label`, `predicted` (argmax),
    `position` of the right class (1: first), `pessimistic_position`; both are one more than there are classes where the
    right one can't be predicted.

    Args:
        scores: of the images, chunk after chunk, on the CPU; -inf for a class that can't be predicted.
        labels: the class of each image.
        classes: number of classes.
        prefix: of the metrics' names.
    """
    parts, start = [], 0
    for chunk in scores:
        parts.append(_positions(chunk, labels[start : start + len(chunk)], _TOP if classes >= _TOP else 1))
        start += len(chunk)
    predicted, position, worst = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    wanted = labels.numpy()
    metrics = {f"{prefix}acc1": float((position == 1).mean())}
    pessimistic = {f"{prefix}acc1": float((worst == 1).mean())}
    metrics[f"{prefix}mean_per_class_recall"] = mean_per_class_recall(wanted, predicted == wanted)
    pessimistic[f"{prefix}mean_per_class_recall"] = mean_per_class_recall(wanted, worst == 1)
    chance = dict.fromkeys(metrics, 1 / classes)
    if classes >= _TOP:
        metrics[f"{prefix}acc5"] = float((position <= _TOP).mean())
        pessimistic[f"{prefix}acc5"] = float((worst <= _TOP).mean())
        chance[f"{prefix}acc5"] = _TOP / classes
    outcomes = {"label": wanted, "predicted": predicted, "position": position, "pessimistic_position": worst}
    return Evaluation(
        metrics, chance, {name: each.astype(np.int32) for name, each in outcomes.items()}, pessimistic=pessimistic
    )


def mean_per_class_recall(labels: NDArray[np.integer], right: NDArray[np.bool_]) -> float:
    """The mean over the classes that occur of the share of their images that are right."""
    counts = np.bincount(labels)
    return float((np.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]).mean())


def class_tables(outcomes: Mapping[str, NDArray], classnames: Sequence[str]) -> dict[str, list[list[str]]]:
    """`per_class`: size, recall and most frequent error of every class; `confusion`: its nonzero cells.

    Args:
        outcomes: of `classification_metrics`.
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
    """Of each class the mean over its prompts, of unit length (Radford et al., arXiv 2103.00020, section 3.1.4).

    Args:
        prompts: class after class, all templates of one together.
        classes: number of classes.
    """
    return F.normalize(prompts.view(classes, -1, prompts.shape[1]).mean(1), dim=-1)


def first_twins(classes: Float[Tensor, "classes embed"]) -> Int64[Tensor, " classes"]:
    """For every class the first one with the same embedding: itself, where names differ."""
    _, group = classes.unique(dim=0, return_inverse=True)
    return torch.full_like(group, len(group)).scatter_reduce(0, group, torch.arange(len(group)), "amin")[group]


def _scores(
    images: Float[Tensor, "images embed"], classes: Float[Tensor, "classes embed"]
) -> Iterator[Float[Tensor, "_ classes"]]:
    """Chunks of 100 · cosine, as CLIP_benchmark has it. Equal classes get equal scores, which a matrix product alone
    does not promise."""
    twins = first_twins(classes)
    alike = bool((twins != torch.arange(len(classes))).any())
    for chunk in images.split(_CHUNK):
        scores = (100 * chunk) @ classes.T
        yield scores[:, twins] if alike else scores


def _positions(scores: Tensor, wanted: Tensor, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted class, the right class's position, and its position behind all that ties with it."""
    right = scores.gather(1, wanted[:, None])
    found = scores.topk(depth, dim=1).indices == wanted[:, None]
    behind = ((scores > right).sum(1) + 1).clamp(min=depth + 1)
    position = torch.where(found.any(1), found.int().argmax(1) + 1, behind)
    never = ~right[:, 0].isfinite()
    position, worst = (each.masked_fill(never, scores.shape[1] + 1) for each in (position, (scores >= right).sum(1)))
    return scores.argmax(1), position, worst
