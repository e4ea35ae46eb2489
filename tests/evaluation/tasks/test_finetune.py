"""Fine-tuning: it learns, repeats itself, leaves the models alone, and says what is missing."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import colour_samples, write_tar
from torch import nn

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.finetune import FinetuneConfig
from mmrep.data.tar import DataError
from mmrep.data.transforms import view_of_decoded
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.tasks.finetune import _predict, finetune, finetune_metrics
from mmrep.evaluation.tasks.finetuning import Classifier, _Crops, _optimizer, _schedule, fine_tune
from mmrep.evaluation.tasks.labelled import validation_part
from mmrep.model.dual_encoder import DualEncoder

OPTIONS = FinetuneConfig(epochs=4, batch_size=4, lrs=(3e-3, 1e-6), classifier_lr=1e-3)
CONFIG = EvaluationConfig(batch_size=6, workers=0, finetune=OPTIONS)


@pytest.fixture(scope="module")
def folder(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("labelled") / "colours"
    shutil.copytree(colour_set, place)
    (place / "train/nshards.txt").write_text("1")
    return place


@pytest.fixture(scope="module")
def evalset(folder: Path) -> EvalSet:
    return open_set(SetConfig(str(folder)))


@pytest.fixture(scope="module")
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("ggem", seed=1).eval()


@pytest.fixture(scope="module")
def found(model: DualEncoder, evalset: EvalSet) -> Evaluation:
    return finetune(Context({"tiny": model}, evalset, CONFIG))[0]


def test_it_learns(found: Evaluation) -> None:
    assert found.metrics["finetune_acc1"] > 0.9
    assert found.metrics["finetune_mean_per_class_recall"] == found.metrics["finetune_acc1"]
    assert found.chance == {"finetune_acc1": 0.25, "finetune_mean_per_class_recall": 0.25}
    assert found.details["lr"] == 3e-3 and set(found.details["validation_acc1"]) == {"1e-06", "0.003"}
    assert found.details["train_images"] == 16
    right = found.outcomes["prediction"] == found.outcomes["label"]
    assert found.metrics["finetune_acc1"] == right.mean()


def test_learning_curves(found: Evaluation) -> None:
    head, *rows = found.tables["curves"]
    assert head == ["run", "epoch", "lr", "loss", "train_acc1"]
    assert [row[0] for row in rows[::4]] == ["validation 0.003", "validation 1e-06", "final 0.003"]
    final = [float(row[3]) for row in rows[8:]]
    assert final[-1] < final[0] < np.log(4) + 0.2
    assert float(rows[-1][4]) > float(rows[8][4])


def test_it_repeats_itself_and_leaves_models_and_random_state(
    model: DualEncoder, evalset: EvalSet, found: Evaluation
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(123)
    state = torch.get_rng_state()
    (again,) = finetune(Context({"tiny": model}, evalset, CONFIG))
    assert torch.equal(torch.get_rng_state(), state)
    assert (again.metrics, again.details) == (found.metrics, found.details)
    assert again.tables["curves"] == found.tables["curves"]
    np.testing.assert_array_equal(again.outcomes["prediction"], found.outcomes["prediction"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_workers_change_nothing(model: DualEncoder, evalset: EvalSet) -> None:
    train = Context({"tiny": model}, evalset, CONFIG).train
    curves = [
        fine_tune(model, train.evalset.records, train.labels, range(16), 4, 3e-3, replace(CONFIG, workers=workers))[1]
        for workers in (0, 2)
    ]
    assert curves[0] == curves[1]


def test_the_seed_and_the_draws_matter(model: DualEncoder, evalset: EvalSet) -> None:
    train = Context({"tiny": model}, evalset, CONFIG).train
    curves = []
    for change in ({}, {"seed": 1}, {"min_scale": 0.1}, {"flip": False}, {"warmup": 0.5}, {"weight_decay": 10.0}):
        config = replace(CONFIG, finetune=replace(OPTIONS, epochs=1, **change))
        curves.append(fine_tune(model, train.evalset.records, train.labels, range(16), 4, 3e-3, config)[1])
    assert len({str(curve) for curve in curves}) == len(curves)


def test_the_tower_is_trained_too(model: DualEncoder, evalset: EvalSet) -> None:
    train = Context({"tiny": model}, evalset, CONFIG).train
    classifier, _ = fine_tune(model, train.evalset.records, train.labels, range(16), 4, 3e-3, CONFIG)
    assert not classifier.training
    for (name, after), before in zip(classifier.tower.named_parameters(), model.image.parameters(), strict=True):
        assert not torch.equal(after, before), name


def test_one_rate_needs_no_validation(model: DualEncoder, evalset: EvalSet, found: Evaluation) -> None:
    config = replace(CONFIG, finetune=replace(OPTIONS, lrs=(3e-3,)))
    (one,) = finetune(Context({"tiny": model}, evalset, config))
    assert one.details["validation_acc1"] == {}
    assert one.tables["curves"][1:] == found.tables["curves"][9:]
    assert one.metrics == found.metrics


def test_diverged_rates_lose_and_alone_are_an_error(model: DualEncoder, evalset: EvalSet, found: Evaluation) -> None:
    both = replace(CONFIG, finetune=replace(OPTIONS, lrs=(1e30, 3e-3)))
    (each,) = finetune(Context({"tiny": model}, evalset, both))
    assert each.details["lr"] == 3e-3 and each.details["validation_acc1"]["1e+30"] == 0
    alone = replace(CONFIG, finetune=replace(OPTIONS, lrs=(1e30,), epochs=1))
    with pytest.raises(MmrepError, match=r"model tiny: fine-tuned on colours at learning rate 1e\+30"):
        finetune(Context({"tiny": model}, evalset, alone))


def test_the_rate_is_chosen_on_images_that_were_not_trained_on(
    model: DualEncoder, evalset: EvalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, scored = [], []

    def tune(model: DualEncoder, records: Any, labels: Any, positions: Any, *rest: Any) -> Any:
        trained.append([records.key(position) for position in positions])
        return fine_tune(model, records, labels, positions, *rest)

    def predict(classifier: Classifier, records: Any, config: EvaluationConfig) -> Any:
        scored.append([records.key(position) for position in range(len(records))])
        return _predict(classifier, records, config)

    monkeypatch.setattr("mmrep.evaluation.tasks.finetune.fine_tune", tune)
    monkeypatch.setattr("mmrep.evaluation.tasks.finetune._predict", predict)
    options = replace(OPTIONS, epochs=1, validation=0.5)
    finetune(Context({"tiny": model}, evalset, replace(CONFIG, finetune=options)))
    train = Context({"tiny": model}, evalset, CONFIG).train
    held = validation_part(np.array(train.labels), 0.5, options.seed)
    keys = np.array(train.evalset.keys())
    assert [set(each) for each in trained] == [set(keys[~held])] * 2 + [set(keys)]
    assert [set(each) for each in scored] == [set(keys[held])] * 2 + [set(evalset.keys())]
    assert all(set(a).isdisjoint(b) for a, b in zip(trained[:2], scored[:2], strict=True))


def test_half_of_the_images_are_mirrored(evalset: EvalSet, monkeypatch: pytest.MonkeyPatch) -> None:
    flips: list[bool] = []

    def spy(image: Any, kind: str, min_scale: float, size: Any, crop: Any, flip: bool) -> Any:
        flips.append(flip)
        return view_of_decoded(image, kind, min_scale, size, crop, flip)  # type: ignore[arg-type]  # any crop that is asked for

    monkeypatch.setattr("mmrep.evaluation.tasks.finetuning.view_of_decoded", spy)
    for flip in (True, False):
        crops = _Crops(evalset.records, (16, 16), replace(OPTIONS, flip=flip))
        for epoch in range(16):
            for position in range(16):
                crops[epoch, position]
    assert 0.4 < np.mean(flips[:256]) < 0.6
    assert not any(flips[256:])


def test_workers_share_the_cores_with_the_other_processes_here(
    model: DualEncoder, evalset: EvalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("mmrep.evaluation.tasks.finetuning.default_workers", lambda here: asked.append(here) or 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    train = Context({"tiny": model}, evalset, CONFIG).train
    config = replace(CONFIG, workers=None, finetune=replace(OPTIONS, epochs=1))
    fine_tune(model, train.evalset.records, train.labels, range(4), 4, 3e-3, config)
    assert asked == [3]


@pytest.mark.long
def test_processes_score_one_classifier(folder: Path, tmp_path: Path) -> None:
    """Other seeds stand for sums that don't repeat: both processes go on with the first one's weights and buffers."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("two_classifiers.py")), str(folder), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one["curve"] != two["curve"]
    assert one["state"].keys() == two["state"].keys()
    for name, value in one["state"].items():
        assert torch.equal(value, two["state"][name]), name


def test_schedule() -> None:
    shares = [_schedule(step, 20, 5) for step in range(20)]
    assert shares[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert all(a > b for a, b in pairwise(shares[5:])) and 0 < shares[-1] < 0.02
    assert _schedule(0, 1, 0) == _schedule(0, 1, 1) == 1


def test_optimizer_groups(model: DualEncoder) -> None:
    classifier = Classifier(model, 4)
    groups = _optimizer(classifier, 1e-4, OPTIONS).param_groups
    by_parameter = {id(p): (group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(by_parameter) == len(list(classifier.parameters()))
    assert by_parameter[id(classifier.linear.weight)] == (1e-3, 0.05)
    assert by_parameter[id(classifier.linear.bias)] == (1e-3, 0.0)
    for name, parameter in classifier.tower.named_parameters():
        peak, decay = by_parameter[id(parameter)]
        assert peak == 1e-4 * model.lr_scales().get(f"image.{name}", 1.0)
        exempt = parameter.ndim < 2 or f"image.{name}" in model.no_weight_decay()
        assert decay == (0.0 if exempt else 0.05)
    assert isinstance(classifier.linear, nn.Linear) and not classifier.linear.weight.any()


def test_recall_is_over_the_classes_that_occur() -> None:
    found = finetune_metrics(np.array([0, 0, 0, 2]), [0, 0, 2, 2], 4)
    assert found.metrics == {"finetune_acc1": 0.75, "finetune_mean_per_class_recall": 0.75}
    found = finetune_metrics(np.array([0, 0, 0, 1]), [0, 0, 0, 2], 4)
    assert found.metrics == {"finetune_acc1": 0.75, "finetune_mean_per_class_recall": 0.5}


def small_set(tmp_path: Path, labels: list[int]) -> EvalSet:
    samples: list[Any] = []
    for i, label in enumerate(labels):
        key, members = colour_samples(1, i)[0]
        samples.append((key, {"png": members["png"], "cls": str(label).encode()}))
    write_tar(tmp_path / "train/0.tar", samples)
    write_tar(tmp_path / "test/0.tar", colour_samples(4))
    for split in ("train", "test"):
        (tmp_path / split / "nshards.txt").write_text("1")
    (tmp_path / "classnames.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("{c}\n")
    return open_set(SetConfig(str(tmp_path), name="small"))


def test_missing_training_split(model: DualEncoder, colour_set: Path) -> None:
    held_out = open_set(SetConfig(str(colour_set)))._replace(config=None)
    with pytest.raises(ConfigError, match="no training split"):
        finetune(Context({"tiny": model}, held_out, CONFIG))


@pytest.mark.parametrize("split", ["test", "test/", "./test"])
def test_the_test_split_is_refused_however_it_is_spelled(model: DualEncoder, folder: Path, split: str) -> None:
    for evalset in (
        open_set(SetConfig(str(folder), train_split=split)),
        open_set(SetConfig(str(folder), split=split, train_split="test")),
    ):
        with pytest.raises(ConfigError, match="fitted on the split that it is tested on"):
            finetune(Context({"tiny": model}, evalset, CONFIG))


def test_captions_are_refused(model: DualEncoder, colour_set: Path) -> None:
    with pytest.raises(ConfigError, match="finetune needs classes"):
        finetune(Context({"tiny": model}, open_set(SetConfig(f"{colour_set}/retrieval")), CONFIG))


def test_one_class_is_refused(model: DualEncoder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set small/train: task finetune: images of fewer than two classes"):
        finetune(Context({"tiny": model}, small_set(tmp_path, [1, 1, 1]), CONFIG))


def test_too_few_images_to_choose_on(model: DualEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    evalset = small_set(tmp_path, [0, 1, 2])
    with pytest.raises(ConfigError, match=r"small/train: too few images a class to choose finetune\.lrs on; give one"):
        finetune(Context({"tiny": model}, evalset, CONFIG))
    assert "task finetune: 1 of 4 test images are of 1 classes that the training split lacks" in caplog.text


def test_a_damaged_image_stops(model: DualEncoder, tmp_path: Path) -> None:
    evalset = small_set(tmp_path, [0, 1, 2, 3])
    samples = colour_samples(4)
    samples[2][1]["png"] = b"no image"
    write_tar(tmp_path / "train/0.tar", samples)
    config = replace(CONFIG, finetune=replace(OPTIONS, lrs=(1e-3,)))
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"0\.tar: sample '000002', member 'png': not an image") as caught:
            finetune(Context({"tiny": model}, evalset, replace(config, workers=workers)))
        assert "\n" not in str(caught.value)
