"""Standard errors against closed forms and against the bootstrap."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import zeroshot_metrics
from mmrep.evaluation.scoring.ranking import retrieval_metrics
from mmrep.evaluation.scoring.uncertainty import standard_error


def classified(seed: int, images: int = 240, classes: int = 6) -> Evaluation:
    """Embeddings near their class, and classes of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(images) ** 2 // 977 % classes).tolist()
    names = torch.eye(classes)
    found = names[labels] + 0.9 * torch.randn(images, classes, generator=generator)
    return zeroshot_metrics(found, names, labels)


def retrieved(seed: int, images: int = 200) -> Evaluation:
    """One to four captions an image, near it."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(images).repeat_interleave(torch.arange(images) % 4 + 1)
    points = torch.randn(images, 8, generator=generator)
    texts = points[owner] + 0.8 * torch.randn(len(owner), 8, generator=generator)
    return retrieval_metrics(points, texts, owner)


def resampled(evaluation: Evaluation, metric: str, images: NDArray[np.int64]) -> float:
    """The metric on a draw of images, each with all that belongs to it, computed from its definition."""
    found, (name, _, k) = evaluation.outcomes, metric.partition("@")
    if name == "image_retrieval_recall":
        own = [np.flatnonzero(found["image_of_text"] == image) for image in images]
        return float((found["image_position"][np.concatenate(own)] <= int(k)).mean())
    if name == "text_retrieval_recall":
        return float((found["text_position"][images] <= int(k)).mean())
    label, right = found["label"][images], found["position"][images] == 1
    if name == "acc1":
        return float(right.mean())
    return float(np.mean([right[label == each].mean() for each in np.unique(label)]))


def bootstrap(images: int, value: Callable[[NDArray[np.int64]], float]) -> float:
    generator = np.random.default_rng(0)
    return float(np.std([value(generator.integers(0, images, images)) for _ in range(1500)]))


def test_accuracy_has_the_binomial_error() -> None:
    found = classified(0)
    accuracy = found.metrics["acc1"]
    assert 0.3 < accuracy < 0.9
    assert standard_error(found, "acc1") == pytest.approx((accuracy * (1 - accuracy) / 240) ** 0.5)
    top = found.metrics["acc5"]
    assert standard_error(found, "acc5") == pytest.approx((top * (1 - top) / 240) ** 0.5)


CASES = [
    (classified, "mean_per_class_recall"),
    (retrieved, "image_retrieval_recall@1"),
    (retrieved, "text_retrieval_recall@5"),
]


@pytest.mark.parametrize(("make", "metric"), CASES)
def test_errors_are_those_of_the_bootstrap(make: Callable[[int], Evaluation], metric: str) -> None:
    found = make(0)
    images = len(found.outcomes["label" if make is classified else "text_position"])
    expected = bootstrap(images, lambda drawn: resampled(found, metric, drawn))
    assert standard_error(found, metric) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("make", "metric"), [(classified, "acc1"), *CASES])
def test_differences_are_paired(make: Callable[[int], Evaluation], metric: str) -> None:
    a, b = make(0), make(1)
    images = len(a.outcomes["label" if make is classified else "text_position"])
    expected = bootstrap(images, lambda drawn: resampled(a, metric, drawn) - resampled(b, metric, drawn))
    assert standard_error(a, metric, b) == pytest.approx(expected, rel=0.1)
    assert standard_error(a, metric, a) == 0


def test_metrics_that_are_no_means_over_images_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no standard error for 'map'"):
        standard_error(classified(0), "map")
