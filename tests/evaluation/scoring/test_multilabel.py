"""Average precision by hand-made cases, with ties, absent classes and images of no class; chance against simulation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.multilabel import multilabel_metrics

NAME = "mean_average_precision"


def scored(scores: list[list[float]], targets: list[list[int]]) -> Evaluation:
    """Images whose score for each class is given: classes are the unit vectors."""
    columns = len(scores[0])
    names = [f"class {label}" for label in range(columns)]
    return multilabel_metrics(torch.tensor(scores).float(), torch.eye(columns), torch.tensor(targets).bool(), names)


def clip_benchmark(scores: Tensor, targets: Tensor) -> float:
    """The mean over classes of Σ precision at each hit / max(hits, 1), images sorted by torch.sort."""
    found = []
    for column, own in zip(scores.T, targets.T, strict=True):
        truth = own[column.sort(descending=True).indices].float()
        precision = truth.cumsum(0) / torch.arange(1, len(truth) + 1)
        found.append(float(precision[truth.bool()].sum() / max(float(truth.sum()), 1)))
    return float(np.mean(found))


def test_by_hand() -> None:
    found = scored([[4, 1], [3, 4], [2, 3], [1, 2]], [[1, 0], [0, 0], [1, 1], [0, 1]])
    # Class 0: its images stand first and third; class 1: second and third.
    expected = np.mean([(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2])
    assert found.metrics == {NAME: pytest.approx(expected)}
    assert found.pessimistic == found.metrics and not found.further
    assert found.tables["per_class"][1] == ["0", "class 0", "2", "0.833333"]


def test_ties_pessimistically_come_last() -> None:
    found = scored([[1], [1], [1], [0]], [[1], [0], [0], [0]])
    assert found.metrics[NAME] > found.pessimistic[NAME] == pytest.approx(1 / 3)
    found = scored([[1], [1], [1], [0]], [[0], [1], [1], [0]])
    assert found.pessimistic[NAME] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_ties_are_clip_benchmarks() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(-2, 3, (300, 3), generator=generator).float()
    classes = torch.randint(-2, 3, (70, 3), generator=generator).float()  # past the classes that are scored at once
    targets = torch.rand(300, 70, generator=generator) < 0.1
    targets[:, 5] = False
    found = multilabel_metrics(images, classes, targets, [""] * 70)
    assert found.metrics[NAME] == pytest.approx(clip_benchmark(100 * images @ classes.T, targets), abs=1e-6)
    assert found.pessimistic[NAME] < found.metrics[NAME] - 0.001
    assert recomputed(found, "positive_position", 70) == pytest.approx(found.metrics[NAME])
    assert recomputed(found, "positive_pessimistic_position", 70) == pytest.approx(found.pessimistic[NAME])
    rows, columns = found.outcomes["image_of_positive"], found.outcomes["class_of_positive"]
    np.testing.assert_array_equal(
        np.sort(rows.astype(int) * 70 + columns), np.flatnonzero(targets.numpy())
    )  # every image and class once


def test_equal_images_tie_in_a_block_of_one_class() -> None:
    """A product with one column adds up some rows in another order than others."""
    generator = torch.Generator().manual_seed(0)
    image, classes = torch.randn(1, 512, generator=generator), torch.randn(65, 512, generator=generator)
    for count in (5, 15, 31):
        targets = torch.zeros(count, 65, dtype=torch.bool)
        targets[0] = True
        found = multilabel_metrics(image.expand(count, -1).contiguous(), classes, targets, [""] * 65)
        assert found.outcomes["positive_pessimistic_position"].tolist() == [count] * 65


def recomputed(found: Evaluation, name: str, classes: int) -> float:
    owner, place = found.outcomes["class_of_positive"], found.outcomes[name]
    found = []
    for label in range(classes):
        own = np.sort(place[owner == label])
        found.append(sum(nth / each for nth, each in enumerate(own, 1)) / max(len(own), 1))
    return float(np.mean(found))


def test_absent_classes_count_zero() -> None:
    found = scored([[1, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 0, 1]])
    assert found.metrics == {NAME: pytest.approx(2 / 3)}
    assert found.further == {"mean_average_precision_of_occurring_classes": 1}
    assert found.tables["per_class"][2] == ["1", "class 1", "0", ""]


def test_chance_by_simulation() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.zeros(12, 4, dtype=torch.bool)
    targets[:1, 0] = targets[:5, 1] = targets[:, 2] = True
    found = [
        multilabel_metrics(torch.rand(12, 4, generator=generator), torch.eye(4), targets, [""] * 4) for _ in range(400)
    ]
    values = np.array([each.metrics[NAME] for each in found])
    assert abs(values.mean() - found[0].chance[NAME]) < 4 * values.std() / len(values) ** 0.5
