"""Average precision by hand-made cases, with ties, absent classes and images of no class; chance against simulation."""

import logging
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrep.data.tar import DataError
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.multilabel import average_precision, multilabel_metrics, targets_of, warn_of_absent

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


def recomputed(found: Evaluation, name: str, classes: int) -> float:
    owner, place = found.outcomes["class_of_positive"], found.outcomes[name]
    return float(np.mean([average_precision(place[owner == label]) for label in range(classes)]))


def test_absent_classes_count_zero_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    targets = [[1, 0, 0], [0, 0, 1]]
    found = scored([[1, 0, 0], [0, 0, 1]], targets)
    assert found.metrics == {NAME: pytest.approx(2 / 3)}
    assert found.further == {"mean_average_precision_of_occurring_classes": 1}
    assert found.tables["per_class"][2] == ["1", "class 1", "0", ""]
    with caplog.at_level(logging.WARNING, "mmrep"):
        warn_of_absent(torch.tensor(targets).bool(), ["a", "b", "c"], "here")
    assert "here: 1 of 3 classes have no image" in caplog.text and "(b)" in caplog.text
    with pytest.raises(DataError, match="here: no image has any class"):
        warn_of_absent(torch.zeros(4, 3, dtype=torch.bool), ["a", "b", "c"], "here")


def test_chance_by_simulation() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.zeros(12, 4, dtype=torch.bool)
    targets[:1, 0] = targets[:5, 1] = targets[:, 2] = True
    found = [
        multilabel_metrics(torch.rand(12, 4, generator=generator), torch.eye(4), targets, [""] * 4) for _ in range(400)
    ]
    values = np.array([each.metrics[NAME] for each in found])
    assert abs(values.mean() - found[0].chance[NAME]) < 4 * values.std() / len(values) ** 0.5


@dataclass
class Several:
    """Records of which only the labels are read."""

    own: list[list[int]]

    def __len__(self) -> int:
        return len(self.own)

    def labels(self, position: int) -> list[int]:
        return self.own[position]

    def key(self, position: int) -> str:
        return f"image {position}"

    def unused(self, *_: Any) -> NoReturn:
        raise AssertionError("only labels are read")

    image = label = texts = take = digest = unused


def test_targets() -> None:
    assert targets_of(Several([[2, 0], [], [1, 1]]), 3, "here").tolist() == [
        [True, False, True],
        [False, False, False],
        [False, True, False],
    ]
    with pytest.raises(DataError, match="here: sample 'image 1': label 3, but there are 3 class names"):
        targets_of(Several([[0], [3]]), 3, "here")
