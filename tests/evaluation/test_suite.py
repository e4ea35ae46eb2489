"""Many sets, many models: both tasks, the results' files, and nothing changed in the models."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.suite import Result, align, evaluate, table, write_results
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=6, text_batch_size=4, workers=0)
ACCURACIES = {"acc1", "mean_per_class_recall"}
RECALLS = {f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5, 10)}


@pytest.fixture(scope="module")
def models(tiny: Callable[..., DualEncoder]) -> dict[str, DualEncoder]:
    return {"avg": tiny("avg", seed=1), "runs/cls": tiny("cls", seed=2)}


@pytest.fixture(scope="module")
def sets(colour_set: Path) -> list[EvalSet]:
    return [open_set(SetConfig(str(colour_set), name="colours")), open_set(SetConfig(f"{colour_set}/retrieval"))]


@pytest.fixture(scope="module")
def results(models: dict[str, DualEncoder], sets: list[EvalSet]) -> list[Result]:
    return evaluate(models, sets, CONFIG)


def test_every_model_on_every_set(results: list[Result]) -> None:
    assert [(result.model, result.evalset.name, result.evalset.task) for result in results] == [
        ("avg", "colours", "zeroshot"),
        ("runs/cls", "colours", "zeroshot"),
        ("avg", "retrieval", "retrieval"),
        ("runs/cls", "retrieval", "retrieval"),
    ]
    for result in results:
        expected = ACCURACIES if result.evalset.task == "zeroshot" else RECALLS
        assert set(result.evaluation.metrics) == set(result.evaluation.chance) == expected
        assert all(0 <= value <= 1 for value in result.evaluation.metrics.values())


def test_one_pass_equals_separate_ones(
    models: dict[str, DualEncoder], sets: list[EvalSet], results: list[Result]
) -> None:
    apart = [evaluate({name: model}, [evalset], CONFIG)[0] for evalset in sets for name, model in models.items()]
    for one, other in zip(results, apart, strict=True):
        assert one.to_dict() == other.to_dict()
        for name, values in one.evaluation.outcomes.items():
            np.testing.assert_array_equal(values, other.evaluation.outcomes[name])


def test_batch_sizes_change_nothing(models: dict[str, DualEncoder], sets: list[EvalSet], results: list[Result]) -> None:
    other = evaluate(models, sets, EvaluationConfig(batch_size=16, text_batch_size=100, workers=0))
    assert [result.to_dict() for result in other] == [result.to_dict() for result in results]


@pytest.mark.parametrize("training", [True, False])
def test_models_keep_their_mode_and_weights(
    models: dict[str, DualEncoder], sets: list[EvalSet], training: bool
) -> None:
    model = models["avg"].train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate({"avg": model}, sets, CONFIG)
    assert model.training == training
    assert all(module.training == training for module in model.modules())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_models_are_evaluated_without_dropout(models: dict[str, DualEncoder], sets: list[EvalSet]) -> None:
    model = models["avg"].train()
    modes: list[bool] = []
    hooks = [
        tower.register_forward_hook(lambda module, *_: modes.append(module.training)) for tower in model.children()
    ]
    evaluate({"avg": model}, sets, CONFIG)
    for hook in hooks:
        hook.remove()
    assert modes and not any(modes)


def test_two_sets_of_one_name_are_refused(models: dict[str, DualEncoder], sets: list[EvalSet]) -> None:
    with pytest.raises(ConfigError, match="2 sets are named 'colours'"):
        evaluate(models, [sets[0], sets[0]], CONFIG)


def test_results_files(results: list[Result], sets: list[EvalSet], tmp_path: Path) -> None:
    place = tmp_path / "deep/results.json"
    write_results(results, place, {"version": "x"})
    content = json.loads(place.read_text())
    assert (content["schema"], content["version"]) == (1, "x")
    assert content["results"] == [result.to_dict() for result in results]
    assert set(content["results"][0]) == {"model", "dataset", "task", "n", "metrics", "chance"}
    assert [each["n"] for each in content["results"]] == [16] * 4
    found = sorted(str(path.relative_to(place.parent)) for path in place.parent.rglob("*.npz"))
    models = ("avg", "runs_cls")
    assert found == sorted(f"outcomes/{model}/{name}.npz" for model in models for name in ("colours", "retrieval"))


def test_outcomes_are_every_samples(results: list[Result], sets: list[EvalSet], tmp_path: Path) -> None:
    write_results(results, tmp_path / "results.json")
    with np.load(tmp_path / "outcomes/avg/colours.npz", allow_pickle=False) as arrays:
        assert arrays["keys"].tolist() == sets[0].keys()
        assert arrays["label"].tolist() == [0, 1, 2, 3] * 4
        assert (arrays["position"] == 1).mean() == results[0].evaluation.metrics["acc1"]
    with np.load(tmp_path / "outcomes/runs_cls/retrieval.npz", allow_pickle=False) as arrays:
        assert arrays["keys"].tolist() == sets[1].keys()
        assert arrays["image_of_text"].tolist() == [i // 2 for i in range(32)]
        metrics = results[3].evaluation.metrics
        assert (arrays["image_position"] == 1).mean() == metrics["image_retrieval_recall@1"]
        assert (arrays["text_position"] == 1).mean() == metrics["text_retrieval_recall@1"]
        assert (len(arrays["image_position"]), len(arrays["text_position"])) == (32, 16)


def test_table(results: list[Result]) -> None:
    lines = table(results[:1]).splitlines()
    assert lines[0].split() == ["model", "dataset", "task", "n", "metric", "value", "chance", "worst", "ties"]
    assert len(lines) == 2 + len(ACCURACIES)
    acc1 = results[0].evaluation.metrics["acc1"]
    assert lines[2].split() == ["avg", "colours", "zeroshot", "16", "acc1", f"{100 * acc1:.2f}", "25.00", "–"]


def test_align() -> None:
    text = align([("name", "value"), ("a", "1.5"), ("long name", "-12.25"), ("none", "–")])
    assert text.splitlines() == [
        "name        value",
        "---------  ------",
        "a             1.5",
        "long name  -12.25",
        "none            –",
    ]
