"""Standard errors of metrics over the images of a set, for one model and for the difference of two on the same images.

They estimate the effect of another draw of images, not of another seed.
"""

import numpy as np
from numpy.typing import NDArray

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.ranking import RECALL_AT


def standard_error(evaluation: Evaluation, metric: str, other: Evaluation | None = None) -> float:
    """Return the standard error of a metric, or of its paired difference from `other`'s on the same set.

    A metric is a weighted mean m = Σ_i w_i h_i over images; its error by linearisation is √Σ_i (w_i (h_i − m))²
    (Cochran, Sampling Techniques, 3rd ed., eq. 6.13). The captions of an image are one unit, since they are drawn
    together.
    """
    parts, weights = _parts(evaluation, metric)
    if other is not None:
        parts = parts - _parts(other, metric)[0]
    return float(np.sqrt(np.square(parts - weights * parts.sum()).sum()))


def _parts(evaluation: Evaluation, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what each image adds to a metric, and the most that it can add."""
    found = evaluation.outcomes
    name, _, k = metric.partition("@")
    if name == "image_retrieval_recall":
        owner, texts, images = found["image_of_text"], len(found["image_of_text"]), len(found["text_position"])
        hits = found["image_hits"][:, RECALL_AT.index(int(k))]
        return np.bincount(owner, hits, images) / texts, np.bincount(owner, minlength=images) / texts
    if name == "text_retrieval_recall":
        hits = found["text_hits"][:, RECALL_AT.index(int(k))]
    elif name == "mean_per_class_recall":
        hits = found["predicted"] == found["label"]
    elif name in ("acc1", "acc5"):
        hits = found["position"] <= int(name[3:])
    else:
        raise ValueError(f"metric: there is no standard error for {metric!r}")
    weights = np.full(len(hits), 1 / len(hits))
    if name == "mean_per_class_recall":
        counts = np.bincount(found["label"])
        weights = 1 / (counts[found["label"]] * np.count_nonzero(counts))
    return hits * weights, weights
