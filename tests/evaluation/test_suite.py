"""Many sets, many models: both tasks, the results' files, and nothing changed in the models."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import TASKS, EvaluationConfig, SetConfig
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.suite import TASK_FUNCTIONS, Result, evaluate, evaluate_each, results_table, write_results
from mmrep.markup import align, shortened
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=6, text_batch_size=4, workers=0, cache=False)
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
    with pytest.raises(ConfigError, match="2 evaluation sets are named 'colours'"):
        evaluate(models, [sets[0], sets[0]], CONFIG)


def test_names_that_would_share_a_file_are_refused_before_any_work(
    models: dict[str, DualEncoder], sets: list[EvalSet]
) -> None:
    knn, named = sets[0]._replace(tasks=("knn",)), sets[1]._replace(name="colours.knn")
    with pytest.raises(ConfigError, match=r"'colours\.knn' would write to the files of 'colours' under task knn"):
        evaluate(models, [knn, named], CONFIG)
    clash = {"runs/cls": models["avg"], "runs_cls": models["runs/cls"]}
    with pytest.raises(ConfigError, match="'runs/cls' and 'runs_cls' would both write to outcomes/runs_cls"):
        next(evaluate_each(clash, [SetConfig("not/opened")], CONFIG))


def test_results_files(results: list[Result], sets: list[EvalSet], tmp_path: Path) -> None:
    place = tmp_path / "deep/results.json"
    write_results(results, place, {"version": "x"})
    content = json.loads(place.read_text())
    assert (content["schema"], content["version"]) == (1, "x")
    assert content["results"] == [result.to_dict() for result in results]
    assert {"model", "dataset", "task", "n", "metrics", "chance"} <= set(content["results"][0])
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


def test_tables_have_a_column_for_each_model(results: list[Result]) -> None:
    lines = results_table(results[:2]).splitlines()
    first, second = results[:2]
    assert lines[0] == "colours: zeroshot, 16 samples"
    assert lines[1].split() == ["metric", "chance", first.model, second.model]
    assert len(lines) == 3 + len(ACCURACIES)
    values = [f"{100 * result.evaluation.metrics['acc1']:.2f}" for result in (first, second)]
    assert lines[3].split() == ["acc1", "25.00", *values]


def test_few_rows_are_the_main_figures_of_every_task(results: list[Result]) -> None:
    shown = results_table(results, most=4).splitlines()
    found = [line.split()[0] for line in shown if line.startswith(("acc", "mean", "image", "text"))]
    assert found == ["acc1", "mean_per_class_recall", "image_retrieval_recall@1", "text_retrieval_recall@1"]
    assert re.search(r"… and \d+ more figures in results.json$", shown[-1])


def made(model: str, evalset: EvalSet, **parts: dict[str, float]) -> Result:
    return Result(model, evalset, "zeroshot", Evaluation(**{"metrics": {}, "chance": {}, "outcomes": {}, **parts}))


def test_table_shows_ties_where_they_matter_and_ranks(sets: list[EvalSet]) -> None:
    plain = made("a", sets[0], metrics={"acc1": 0.5}, chance={"acc1": 0.25}, further={"mean_rank": 3.25},
                 pessimistic={"acc1": 0.5})  # fmt: skip
    assert [line.split() for line in results_table([plain]).splitlines()[3:]] == [
        ["acc1", "25.00", "50.00"], ["mean_rank", "–", "3.2"],
    ]  # fmt: skip
    tied = made("b", sets[0], metrics={"acc1": 0.75}, chance={"acc1": 0.25}, pessimistic={"acc1": 0.125})
    assert [line.split() for line in results_table([plain, tied]).splitlines()[3:]] == [
        ["acc1", "25.00", "50.00", "75.00"],
        ["acc1,", "worst", "ties", "50.00", "12.50"],
        ["mean_rank", "–", "3.2", "–"],
    ]


def test_table_fits_a_terminal(sets: list[EvalSet]) -> None:
    long = "hf-hub:somebody/a-model-with-a-very-long-name-trained-on-many-pairs"
    results = [made(f"{long}-{i}", sets[0], metrics={"mean_per_class_recall": 0.5}) for i in range(5)]
    lines = results_table(results, width=80).splitlines()
    heads = [line.split()[2:] for line in lines if line.startswith("metric")]
    assert max(map(len, lines)) <= 80 and len(heads) == 2
    assert [name[-2:] for head in heads for name in head] == [f"-{i}" for i in range(5)], "names differ at their ends"
    assert f"{long}-1" in results_table(results)
    short = [each._replace(model=f"model{i}") for i, each in enumerate(results)]
    assert len(results_table(short, width=80).splitlines()) == 4, "five models of short names side by side"
    assert shortened([["a", "b"], ["x" * 30, "y" * 30]], 10, ("a",))[1][1] == "y" * 30


def test_sets_are_evaluated_and_opened_one_by_one(models: dict[str, DualEncoder], colour_set: Path) -> None:
    missing = SetConfig(str(colour_set / "none"))
    models["avg"].train()
    found = evaluate_each(models, [SetConfig(str(colour_set / "retrieval")), missing], CONFIG)
    assert [result.model for result in next(found)] == ["avg", "runs/cls"]
    assert models["avg"].image.training, "between sets models are as they were"
    with pytest.raises(ConfigError, match="none: no such folder"):
        next(found)


def test_a_task_named_twice_runs_once(models: dict[str, DualEncoder], sets: list[EvalSet]) -> None:
    (found,) = evaluate_each(models, [sets[0]._replace(tasks=("zeroshot", "zeroshot"))], CONFIG)
    assert len(found) == 2


def test_the_cache_changes_no_result(
    models: dict[str, DualEncoder], sets: list[EvalSet], results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, cache=True)
    first = evaluate(models, sets, config)
    monkeypatch.setattr("mmrep.evaluation.embedding.cache.embed_set", lambda *args: pytest.fail("decoded again"))
    again = evaluate(models, sets, config)
    for one, two, three in zip(results, first, again, strict=True):
        assert one.to_dict() == two.to_dict() == three.to_dict()
        for name, values in one.evaluation.outcomes.items():
            np.testing.assert_array_equal(values, three.evaluation.outcomes[name])


def test_files_are_whole_or_not_there(results: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_results(results, tmp_path / "results.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}

    def stopped(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_results(results, tmp_path / "results.json")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_align() -> None:
    text = align([("name", "value"), ("a", "1.5"), ("long name", "-12.25"), ("none", "–")])
    assert text.splitlines() == [
        "name        value",
        "---------  ------",
        "a             1.5",
        "long name  -12.25",
        "none            –",
    ]


def test_every_task_that_a_config_may_name_has_a_function() -> None:
    assert set(TASK_FUNCTIONS) == set(TASKS)
