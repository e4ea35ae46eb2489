"""Linear probe: how the penalty is chosen, on what, and what is said where the choice or the split is doubtful."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import colour_samples, write_tar
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.probe import ProbeConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.scoring import logistic
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.tasks.labelled import Labelled, labelled_splits, validation_part
from mmrep.evaluation.tasks.probe import linear_probe, probe
from mmrep.model.dual_encoder import DualEncoder

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(batch_size=16, workers=0)
FEW = ProbeConfig(penalties=(1e-3, 1e-6, 1e-1))


def noisy(samples: int, classes: int, seed: int, noise: float = 2.5) -> tuple[Tensor, Tensor]:
    """More noise than samples can tell from signal, so that the penalty matters."""
    centres = torch.randn(classes, 40, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(samples) % classes
    drawn = torch.randn(samples, 40, generator=torch.Generator().manual_seed(seed))
    return F.normalize(centres[labels] + noise * drawn, dim=1), labels


@pytest.fixture(scope="module")
def labelled_set(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour set with a training split that evaluation can open."""
    folder = tmp_path_factory.mktemp("labelled") / "colours"
    shutil.copytree(colour_set, folder)
    (folder / "train/nshards.txt").write_text("3")
    return folder


@pytest.fixture(scope="module")
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("avg", seed=1).eval()


def test_every_class_gives_its_share() -> None:
    labels = np.repeat(np.arange(4), [1, 2, 10, 100])
    np.random.Generator(np.random.Philox(1)).shuffle(labels)
    held = validation_part(labels, 0.2, 0)
    assert np.bincount(labels[held], minlength=4).tolist() == [0, 0, 2, 20]
    assert np.bincount(labels[validation_part(labels, 0.9, 0)], minlength=4).tolist() == [0, 1, 9, 90]
    np.testing.assert_array_equal(held, validation_part(labels, 0.2, 0))
    assert (held != validation_part(labels, 0.2, 1)).any()


def test_the_draw_is_frozen() -> None:
    held = validation_part(np.arange(12) % 2, 0.34, seed=5)
    assert np.flatnonzero(held).tolist() == [2, 3, 9, 10]


def test_the_penalty_is_the_best_on_the_held_out_part() -> None:
    train, labels = noisy(200, 5, 0)
    images, wanted = noisy(400, 5, 1)
    found = probe(train, images, Labelled(labels, wanted, 5, 0), FEW, CPU)
    trials = found.details["trials"]
    assert [trial["penalty"] for trial in trials] == [1e-1, 1e-3, 1e-6]
    held = torch.from_numpy(validation_part(labels.numpy(), 0.2, 0))
    regression = logistic.Regression(train[~held], labels[~held], CPU)
    accuracy = {p: regression.fit(p).accuracy(train[held], labels[held]) for p in FEW.penalties}
    assert {trial["penalty"]: trial["accuracy"] for trial in trials} == accuracy
    best = max(accuracy.values())
    assert found.details["penalty"] == max(p for p, value in accuracy.items() if value == best)
    assert min(accuracy.values()) < best
    # Then all of the training split is fitted.
    final = logistic.Regression(train, labels, CPU).fit(found.details["penalty"])
    assert found.metrics["lp_acc1"] == final.accuracy(images, wanted)
    assert found.details["train_images"] == 200 and found.details["converged"]
    assert found.chance == {"lp_acc1": 0.2, "lp_mean_per_class_recall": 0.2, "lp_acc5": 1}


def test_test_images_take_no_part_in_the_choice() -> None:
    train, labels = noisy(200, 5, 0)
    images, wanted = noisy(100, 5, 1)
    one = probe(train, images, Labelled(labels, wanted, 5, 0), FEW, CPU)
    other = probe(train, images.flip(0), Labelled(labels, torch.zeros_like(wanted), 5, 0), FEW, CPU)
    assert one.details == other.details and one.metrics != other.metrics


def test_one_penalty_is_taken_as_it_is() -> None:
    train, labels = noisy(20, 5, 0)
    found = probe(train, train, Labelled(labels, labels, 5, 0), ProbeConfig(penalties=(1e-4,)), CPU)
    assert found.details["penalty"] == 1e-4 and found.details["trials"] == []


def test_too_few_images_to_choose_on() -> None:
    train, labels = noisy(5, 5, 0)
    with pytest.raises(ConfigError, match="5 images of 5 classes: none to choose the penalty on; give one penalty"):
        probe(train, train, Labelled(labels, labels, 5, 0), FEW, CPU)


@pytest.mark.parametrize(("penalties", "word"), [((1.0, 30.0), "smaller"), ((1e-8, 1e-9, 1e-7), "larger")])
def test_a_best_penalty_at_the_end_is_told(
    penalties: tuple[float, ...], word: str, caplog: pytest.LogCaptureFixture
) -> None:
    train, labels = noisy(90, 3, 0)
    train, labels = train[:-20], labels[:-20]  # classes of two sizes: under a large penalty the larger ones win
    with caplog.at_level(logging.WARNING, "mmrep"):
        probe(train, train, Labelled(labels, labels, 3, 0), ProbeConfig(penalties=penalties), CPU, "here")
    (line,) = caplog.messages
    assert line.startswith("here: the best penalty") and f"add {word} ones" in line


def test_what_did_not_converge_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "_ITERATIONS", 2)
    train, labels = noisy(60, 3, 0)
    with caplog.at_level(logging.WARNING, "mmrep"):
        found = probe(train, train, Labelled(labels, labels, 3, 0), ProbeConfig(penalties=(1e-6,)), CPU, "here")
    assert not found.details["converged"]
    assert caplog.messages[0].startswith("here: the regression did not converge with penalty 1e-06;")


def test_classes_that_training_lacks_are_wrong() -> None:
    train, labels = noisy(120, 6, 0, noise=0.1)
    kept = (labels != 2) & (labels != 5)
    images, wanted = noisy(60, 6, 1, noise=0.1)
    found = probe(train[kept], images, Labelled(labels[kept], wanted, 7, 20), ProbeConfig(penalties=(1e-4,)), CPU)
    assert found.metrics["lp_acc1"] == pytest.approx(4 / 6)
    assert found.metrics["lp_acc5"] == pytest.approx(4 / 6)  # though only four of seven classes can be named
    assert (found.details["train_classes"], found.details["unseen_class_images"]) == (4, 20)
    assert set(found.outcomes["predicted"].tolist()) <= {0, 1, 3, 4}


def test_a_model_on_a_set(model: DualEncoder, labelled_set: Path, tiny: Callable[..., DualEncoder]) -> None:
    context = Context({"one": model, "two": tiny("cls", seed=2).eval()}, open_set(SetConfig(str(labelled_set))), CONFIG)
    one, two = linear_probe(context)
    # 48 pictures of four colours: any tower tells them apart once it is fitted.
    assert one.metrics == {"lp_acc1": 1, "lp_mean_per_class_recall": 1}
    assert set(one.tables) == {"per_class", "confusion"} and one.outcomes["label"].tolist() == [0, 1, 2, 3] * 4
    assert two.details["train_images"] == 48


def test_what_training_lacks_is_counted(
    model: DualEncoder, labelled_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(labelled_set, tmp_path / "set")
    write_tar(tmp_path / "set/train/0.tar", [colour_samples(8)[i] for i in (0, 1, 4, 5)])
    (tmp_path / "set/train/nshards.txt").write_text("1")
    with caplog.at_level(logging.WARNING, "mmrep"):
        split = labelled_splits(Context({"one": model}, open_set(SetConfig(f"{tmp_path}/set")), CONFIG), "knn")
    assert split.unseen == 8
    assert "set: task knn: 8 of 16 test images are of 2 classes that the training split lacks" in caplog.text
    assert caplog.messages[-1].endswith("blue, yellow")


def test_splits_that_cannot_be_used(model: DualEncoder, colour_set: Path, labelled_set: Path) -> None:
    def splits(place: SetConfig, **changes: Any) -> Labelled:
        return labelled_splits(Context({"one": model}, open_set(place)._replace(**changes), CONFIG), "linear_probe")

    with pytest.raises(ConfigError, match=r"linear_probe is fitted on the set's train_split: .*no split 'training'"):
        splits(SetConfig(str(labelled_set), train_split="training"))
    with pytest.raises(ConfigError, match="fitted on the split that it is tested on; name another in train_split"):
        splits(SetConfig(str(labelled_set), train_split="test"))
    with pytest.raises(ConfigError, match="linear_probe needs classes, but the set has captions"):
        splits(SetConfig(f"{colour_set}/retrieval"))
    with pytest.raises(ConfigError, match="needs one class an image, but the set has several"):
        splits(SetConfig(str(labelled_set)), multilabel=True)
    with pytest.raises(ConfigError, match="the training split has other class names"):
        splits(SetConfig(str(labelled_set)), classnames=["red", "green", "yellow", "blue"])
    with pytest.raises(ConfigError, match="no training split: it was held out of training"):
        splits(SetConfig(str(labelled_set)), config=None)


def test_config() -> None:
    with pytest.raises(ConfigError, match=r"probe\.penalties: expected a value > 0, got 0"):
        ProbeConfig(penalties=(0.0,))
    with pytest.raises(ConfigError, match=r"probe\.seed"):
        ProbeConfig(seed=-1)
