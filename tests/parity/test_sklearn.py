"""Probe, neighbours and average precision against scikit-learn's figures, ties against CLIP_benchmark's.

sklearn.json holds them; make_sklearn.py says how it is made.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_sklearn import NEIGHBOURS, PENALTIES, TEMPERATURE, problem, several, tied

from mmrep.config.probe import KnnConfig, ProbeConfig
from mmrep.evaluation.scoring.classification import zeroshot_metrics
from mmrep.evaluation.scoring.logistic import Regression
from mmrep.evaluation.scoring.multilabel import multilabel_metrics
from mmrep.evaluation.tasks.knn import knn_metrics
from mmrep.evaluation.tasks.labelled import Labelled
from mmrep.evaluation.tasks.probe import probe

CPU = torch.device("cpu")
DATA = problem()
TRAIN, LABELS = torch.from_numpy(DATA.train).float(), torch.from_numpy(DATA.labels)
TEST, WANTED = torch.from_numpy(DATA.test).float(), torch.from_numpy(DATA.test_labels)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("sklearn.json").read_text())
    return content


@pytest.mark.parametrize("number", range(len(PENALTIES)))
def test_the_regression_is_scikit_learns(expected: dict[str, Any], number: int) -> None:
    theirs = expected["probe"][number]
    fitted = Regression(torch.from_numpy(DATA.train), LABELS, CPU).fit(theirs["penalty"])
    weight = np.array(theirs["coefficients"])
    np.testing.assert_allclose(fitted.weight.numpy(), weight, rtol=0, atol=1e-4 * np.abs(weight).max())
    (scores,) = fitted.scores(torch.from_numpy(DATA.test[:25]))
    np.testing.assert_allclose(scores.softmax(1).numpy(), theirs["probabilities"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", range(len(PENALTIES)))
def test_the_probes_accuracy_is_scikit_learns(expected: dict[str, Any], number: int) -> None:
    theirs = expected["probe"][number]
    config = ProbeConfig(penalties=(theirs["penalty"],))
    found = probe(TRAIN, TEST, Labelled(LABELS, WANTED, 6, 0), config, CPU).metrics
    assert found["lp_acc1"] == pytest.approx(theirs["accuracy"], abs=1e-12)
    assert found["lp_mean_per_class_recall"] == pytest.approx(theirs["mean_per_class_recall"], abs=1e-12)
    assert 0.2 < found["lp_acc1"] < 0.95


def test_the_neighbours_votes_are_scikit_learns(expected: dict[str, Any]) -> None:
    found = knn_metrics(TEST, TRAIN, WANTED, LABELS, 6, KnnConfig(NEIGHBOURS, TEMPERATURE))
    for theirs in expected["knn"]:
        assert found.outcomes[f"predicted@{theirs['k']}"].tolist() == theirs["predicted"]
    assert 0.2 < found.metrics["knn_acc1@20"] < 0.95


def test_average_precision_is_scikit_learns_and_clip_benchmarks(expected: dict[str, Any]) -> None:
    scores, targets = several()
    names = [str(label) for label in range(9)]
    found = multilabel_metrics(torch.from_numpy(scores).float(), torch.eye(9), torch.from_numpy(targets), names)
    ours = [float(row[3] or 0) for row in found.tables["per_class"][1:]]
    assert ours == pytest.approx(expected["precision"]["sklearn"], abs=1e-6)
    assert found.metrics["mean_average_precision"] == pytest.approx(expected["precision"]["clip_benchmark"], abs=1e-6)


def test_ties_are_clip_benchmarks(expected: dict[str, Any]) -> None:
    images, classes, labels = tied()
    found = zeroshot_metrics(torch.from_numpy(images).float(), torch.from_numpy(classes).float(), labels.tolist())
    assert found.metrics == pytest.approx(expected["ties"], abs=1e-6)
    assert found.pessimistic["acc1"] < found.metrics["acc1"] - 0.01
