"""Zero-shot accuracy on corrupted images: mean, by kind and severity, and relative to clean images.

`mmrep.evaluation.tasks.corrupted` defines the corruptions and says why the figures can't be compared with published
mCE.
"""

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray

from mmrep.config.robustness import CORRUPTIONS
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import View, centre_of
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.tasks.corrupted import Corrupted
from mmrep.evaluation.tasks.zeroshot import Predictions, check_classes, predict


def corruption(context: Context) -> list[Evaluation]:
    """Return the accuracy of every model under every kind and severity of `config.corruption`, and on clean images.

    Raises:
        ConfigError: a set without classes.
        DataError: an image that can't be read.
        MmrepError: scores that are not finite.
    """
    check_classes(context, "corruption")
    config = context.config.corruption
    kinds, severities = config.kinds or CORRUPTIONS, config.severities
    views: dict[str, list[View]] = {}
    for name, model in context.models.items():
        centre = centre_of(model)
        corrupted = [Corrupted(centre, kind, severity, config.seed) for kind in kinds for severity in severities]
        views[name] = [centre, *corrupted]
    labels = np.asarray(context.labels)
    classes = len(context.evalset.classnames)
    return [corruption_metrics(found, labels, classes, kinds, severities) for found in predict(context, views)]


def corruption_metrics(
    predictions: Predictions,
    labels: Int64[ndarray, " images"],
    classes: int,
    kinds: tuple[str, ...],
    severities: tuple[int, ...],
) -> Evaluation:
    """Return corruption_acc1, the mean of acc1 over kinds and severities, and corruption_relative_drop, 1 − it / clean.

    Args:
        predictions: for the clean view, then for every kind with every severity, severity by severity.
        labels: the class of each image.
        classes: number of classes.
        kinds: names of the kinds.
        severities: numbers of the severities.
    """
    right = predictions.classes == labels[:, None]
    metrics, further, cells = _figures(right, len(kinds))
    worst_metrics, worst_further, _ = _figures(right & ~predictions.tied, len(kinds))
    # Ties lower both accuracies whose ratio the relative drop is, so there is no bound for it.
    worst_further.pop("corruption_relative_drop", None)
    by_kind = {kind: dict(zip(map(str, severities), row, strict=True)) for kind, row in zip(kinds, cells, strict=True)}
    head = ["corruption", *(f"severity {severity}" for severity in severities), "mean"]
    rows = [[kind, *map(str, row), str(np.mean(row))] for kind, row in zip(kinds, cells, strict=True)]
    means = [float(column) for column in np.mean(cells, axis=0)]
    rows.append(["mean", *map(str, means), str(metrics["corruption_acc1"])])
    outcomes = {
        "label": labels,
        "clean_right": right[:, 0],
        "right": right[:, 1:].reshape(len(labels), len(kinds), len(severities)),
        "tied": predictions.tied,
        "kinds": np.array(kinds),
        "severities": np.array(severities),
    }
    return Evaluation(
        metrics,
        {"corruption_acc1": 1 / classes},
        outcomes,
        further,
        {**worst_metrics, **worst_further},
        details={"acc1": by_kind, "acc1_by_severity": dict(zip(map(str, severities), means, strict=True))},
        tables={"acc1": [head, *rows]},
    )


def _figures(
    right: Bool[ndarray, "images views"], kinds: int
) -> tuple[dict[str, float], dict[str, float], list[list[float]]]:
    """Return the metric, the further figures, and acc1 by kind and severity."""
    clean, *corrupted = right.mean(0).tolist()
    cells = np.reshape(corrupted, (kinds, -1))
    mean = float(cells.mean())
    further = {"corruption_clean_acc1": clean}
    if clean > 0:
        further["corruption_relative_drop"] = 1 - mean / clean
    return {"corruption_acc1": mean}, further, cells.tolist()
