"""Nearest neighbours against a full sort, ties by the lower index, votes by hand."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.probe import KnnConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.tasks.knn import knn, knn_metrics
from mmrep.model.dual_encoder import DualEncoder


def whole(rows: int, width: int, seed: int) -> Tensor:
    """Small whole numbers, so that many similarities are equal."""
    return torch.randint(-2, 3, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


def images(angles: list[float]) -> Tensor:
    turned = torch.tensor(angles).deg2rad()
    return torch.stack([turned.cos(), turned.sin()], 1)


def test_votes_by_hand() -> None:
    train, labels = images([0, 20, 22, 90]), torch.tensor([0, 1, 1, 2])
    found = knn_metrics(images([2, 18]), train, torch.tensor([0, 1]), labels, 3, KnnConfig((1, 3), 10.0))
    # All votes alike: of the three nearest two are of class 1; the nearest alone is right both times.
    assert found.outcomes["predicted@1"].tolist() == [0, 1]
    assert found.outcomes["predicted@3"].tolist() == [1, 1]
    assert found.metrics == found.pessimistic == {"knn_acc1@1": 1, "knn_acc1@3": 0.5}
    assert found.chance == {"knn_acc1@1": 1 / 3, "knn_acc1@3": 1 / 3}
    # A low temperature leaves the nearest alone, and overflows nowhere.
    cold = knn_metrics(images([2, 18]), train, torch.tensor([0, 1]), labels, 3, KnnConfig((3,), 1e-5))
    assert cold.metrics == {"knn_acc1@3": 1}


def test_the_weight_is_exponential() -> None:
    """One neighbour at similarity 1 against two at s: 1 > 2 exp((s − 1)/T) below T = (1 − s)/log 2."""
    train, labels = images([0, 30, -30]), torch.tensor([0, 1, 1])
    threshold = (1 - torch.tensor(30.0).deg2rad().cos().item()) / torch.tensor(2.0).log().item()
    for factor, expected in ((0.99, 0), (1.01, 1)):
        found = knn_metrics(images([0]), train, torch.tensor([0]), labels, 2, KnnConfig((3,), factor * threshold))
        assert found.outcomes["predicted@3"].tolist() == [expected]


def test_equal_votes_go_to_the_lower_class_and_count_as_wrong_pessimistically() -> None:
    train = images([10, 10])
    found = knn_metrics(images([0, 0]), train, torch.tensor([1, 2]), torch.tensor([2, 1]), 3, KnnConfig((1, 2)))
    assert found.outcomes["predicted@1"].tolist() == [2, 2]  # the lower index is nearer
    assert found.outcomes["predicted@2"].tolist() == [1, 1]
    assert found.metrics == {"knn_acc1@1": 0.5, "knn_acc1@2": 0.5}
    assert found.pessimistic == {"knn_acc1@1": 0.5, "knn_acc1@2": 0}


def test_outcomes_give_the_metrics() -> None:
    train, test = F.normalize(whole(300, 6, 0) + 0.1, dim=1), F.normalize(whole(700, 6, 1) + 0.1, dim=1)
    wanted, labels = torch.arange(700) % 4, (train[:, 0] > 0).long() + 2 * (train[:, 1] > 0)
    found = knn_metrics(test, train, wanted, labels, 4, KnnConfig((1, 9)))
    for k in (1, 9):
        right = found.outcomes[f"predicted@{k}"] == found.outcomes["label"]
        assert right.mean() == pytest.approx(found.metrics[f"knn_acc1@{k}"])
        assert found.outcomes[f"pessimistic_right@{k}"].mean() == pytest.approx(found.pessimistic[f"knn_acc1@{k}"])


def test_a_model_on_a_set(tiny: Callable[..., DualEncoder], colour_set: Path, tmp_path: Path) -> None:
    shutil.copytree(colour_set, tmp_path / "set")
    (tmp_path / "set/train/nshards.txt").write_text("3")
    models = {"one": tiny("avg", seed=1).eval()}
    evalset = open_set(SetConfig(f"{tmp_path}/set"))
    config = EvaluationConfig(batch_size=16, workers=0, knn=KnnConfig((1, 48)))
    (found,) = knn(Context(models, evalset, config))
    assert set(found.metrics) == {"knn_acc1@1", "knn_acc1@48"}
    assert found.metrics["knn_acc1@1"] == 1  # shades of the same four colours
    too_many = EvaluationConfig(batch_size=16, workers=0, knn=KnnConfig((1, 49)))
    with pytest.raises(ConfigError, match=r"knn\.k: 49 neighbours, but the training split of set has 48 images; lower"):
        knn(Context(models, evalset, too_many))
