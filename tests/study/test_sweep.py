"""p chosen after training: the same numbers as by hand, one pass of the trunk, and a model that loads again."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from recipes import make_recipe

import mmrep
from mmrep.cli import main
from mmrep.config.checks import ConfigError
from mmrep.config.data import ValidationConfig
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.sweep import SweepConfig
from mmrep.config.tree import TrainConfig
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.suite import Result, evaluate
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling import build_pool
from mmrep.pooling.gem import GGeM, exponents_of
from mmrep.study.sweep import State, Sweep, sweep
from mmrep.study.sweep_report import best_state, near_best, score
from mmrep.study.sweep_run import held_out_sets, primary_metric, save_state, sweep_run
from mmrep.training.trainer import train

SPEED = EvaluationConfig(batch_size=5, text_batch_size=16, workers=0)
RANKS = ("map@10", "mean_rank", "median_rank")
EXPONENTS = [0.5, 3.0, 40.0]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run."""

    config: TrainConfig
    folder: Path


def trained(colour_set: Path, folder: Path, training: dict[str, Any], **parts: Any) -> Trained:
    data = {"validation": ValidationConfig(0.4)}
    training = {"steps": 6, "checkpoint_steps": 0} | training
    config = make_recipe(colour_set, folder, data=data, training=training, **parts)
    return Trained(config, train(config, ""))


@pytest.fixture(scope="module")
def runs(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trained]:
    """A run on captions with exponents, and one on class names without, under autocast."""
    root = tmp_path_factory.mktemp("sweep")
    by_class = {"model": {"pool": "avg"}, "source": {"caption": "cls"}}
    return {
        "ggem": trained(colour_set, root / "ggem", {}),
        "avg": trained(colour_set, root / "avg", {"precision": "bf16"}, **by_class),
    }


@pytest.fixture(scope="module")
def sets(colour_set: Path) -> list[EvalSet]:
    return [open_set(SetConfig(str(colour_set), name="colours")), open_set(SetConfig(f"{colour_set}/retrieval"))]


def by_hand(model: DualEncoder, sets: list[EvalSet], p: float) -> list[dict[str, float]]:
    for module in model.modules():
        if isinstance(module, GGeM):
            module.set_exponents(p)
    return [result.evaluation.metrics for result in evaluate({"model": model}, sets, SPEED)]


POOLS: dict[str, Any] = {
    "gem": {},
    "ggem": {"args": {"groups": 4, "negatives": "signed"}},
    "rgem": {},
    "concat": {"args": {"heads": ["cls", {"name": "ggem", "args": {"negatives": "shift"}}]}},
}


@pytest.mark.long
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sweep_equals_setting_p_by_hand(
    tiny: Callable[..., DualEncoder], sets: list[EvalSet], pool: str, precision: Any
) -> None:
    norm = "after" if pool == "gem" else "before"
    model = tiny({"name": pool, **POOLS[pool]}, image={"norm": norm}).eval()
    torch.nn.init.normal_(model.image.norm.weight)  # so that it matters where it stands
    model.precision = precision
    before = {name: value.clone() for name, value in model.state_dict().items()}
    swept = sweep(model, sets, SweepConfig(p=EXPONENTS[::-1]), SPEED)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [state.name for state in swept.states] == ["trained", "p=0.5", "p=3", "p=40"]
    found = [[result.evaluation.metrics for result in results] for results in swept.results]
    assert found == [
        [result.evaluation.metrics for result in evaluate({"model": model}, sets, SPEED)],
        *(by_hand(model, sets, p) for p in EXPONENTS),
    ]
    assert found[1] != found[3]


def test_a_head_without_exponents_is_replaced(tiny: Callable[..., DualEncoder], sets: list[EvalSet]) -> None:
    model = tiny("avg").eval()
    swept = sweep(model, sets, SweepConfig(p=[1.0, 20.0], negatives="shift"), SPEED)
    trained, mean, sharp = [[result.evaluation.metrics for result in results] for results in swept.results]
    assert mean == trained  # with `shift` p = 1 is the mean
    model.image.pool = build_pool("gem", dim=32, p=20.0, negatives="shift")
    assert sharp == [result.evaluation.metrics for result in evaluate({"model": model}, sets, SPEED)] != trained


def test_another_head_may_be_put_in(tiny: Callable[..., DualEncoder], sets: list[EvalSet]) -> None:
    model = tiny({"name": "mcap", "args": {"tokens": 1}}).eval()
    swept = sweep(model, sets, SweepConfig(p=[4.6], pool="rgem"), SPEED)
    assert swept.put_in is not None and swept.put_in.name == "rgem"
    model.image.pool = build_pool("rgem", dim=32, p=4.6)
    by_rgem = evaluate({"model": model}, sets, SPEED)
    assert [result.evaluation.metrics for result in swept.results[1]] == [each.evaluation.metrics for each in by_rgem]


def test_each_image_goes_through_the_trunk_once_and_each_text_once(
    tiny: Callable[..., DualEncoder], sets: list[EvalSet]
) -> None:
    model = tiny("ggem").eval()
    images: list[int] = []
    texts: list[int] = []
    model.image.trunk.blocks[0].register_forward_pre_hook(lambda module, args: images.append(len(args[0])))
    model.text.register_forward_pre_hook(lambda module, args: texts.append(len(args[0])))
    sweep(model, sets[1:], SweepConfig(), SPEED)
    assert images == [5, 5, 5, 1]  # of 16 images, in batches of 5
    assert sum(texts) == 32


def test_the_trained_state_is_what_training_saw(runs: dict[str, Trained]) -> None:
    for name, run in runs.items():
        shown = sweep_run(run.folder, run.config, SweepConfig(p=EXPONENTS))  # in the batches that training validated in
        content = json.loads((run.folder / "sweep.json").read_text())
        lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        first = content["results"][0]
        assert (first["model"], first["p"], first["dataset"]) == ("trained", None, "validation")
        assert {f"validation/{key}": value for key, value in first["metrics"].items()} == lines[-1]["evaluation"]
        further = {f"{way}_retrieval_{rank}" for way in ("image", "text") for rank in RANKS} if name != "avg" else set()
        assert set(first["chance"]) == set(first["standard_error"]) == set(first["metrics"]) - further
        summary = json.loads((run.folder / "summary.json").read_text())
        assert first["n"] == summary["data"]["held_out"] > 10
        assert {key: content[key] for key in ("model_digest", "config_digest")}.items() <= summary.items()
        assert content["metric"] == ("acc1" if name == "avg" else "image_retrieval_recall@1")
        assert content["test_sets_read"] == []
        assert "images held out of training (data.validation); no test set was looked at" in shown
        assert [result["p"] for result in content["results"]] == [None, *EXPONENTS]


def test_best_and_its_neighbours(tiny: Callable[..., DualEncoder], sets: list[EvalSet]) -> None:
    swept = sweep(tiny("ggem", seed=3).eval(), sets, SweepConfig(p=[1.0, 3.0, 99.0, 100.0]), SPEED)
    for metric in ("acc1", "retrieval/text_retrieval_recall@5", "image_retrieval_recall@10"):
        scores = [score(results, metric) for results in swept.results]
        best = best_state(swept, metric)
        assert scores[best] == max(scores) and best == scores.index(max(scores))
        near = near_best(swept, metric)
        assert swept.states[best] not in near
        assert {state.name for state, value in zip(swept.states, scores, strict=True) if value == max(scores)} <= {
            swept.states[best].name,
            *(state.name for state in near),
        }


def test_neighbours_are_told_apart_image_by_image(sets: list[EvalSet]) -> None:
    """216 and 200 of 400: within an error of 2.5 points, but the 16 are all on one side."""

    def result(right: NDArray[np.bool_]) -> list[Result]:
        outcomes = {"label": np.zeros(400, int), "position": np.where(right, 1, 2)}
        return [Result("", sets[0], "zeroshot", Evaluation({"acc1": float(right.mean())}, {"acc1": 0.25}, outcomes))]

    image, head = np.arange(400), build_pool("gem", dim=2)
    found = [result(image < 200), result(image < 216), result(image >= 400 - 200)]
    swept = Sweep([State(None, head), State(1.0, head), State(2.0, head)], found, None)
    assert best_state(swept, "acc1") == 1
    assert [state.name for state in near_best(swept, "acc1")] == ["p=2"]


def test_the_sweep_runs_in_the_precision_of_training(
    runs: dict[str, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def spy(model: DualEncoder, *args: Any) -> Sweep:
        found.append(model.precision)
        return sweep(model, *args)

    monkeypatch.setattr("mmrep.study.sweep_run.sweep", spy)
    for run in runs.values():
        sweep_run(run.folder, run.config, SweepConfig(p=[1.0]), output=tmp_path / run.folder.name, evaluation=SPEED)
    assert found == ["fp32", "bf16"]


def test_the_metric_to_choose_by(sets: list[EvalSet]) -> None:
    assert primary_metric(sets, None) == "acc1"
    assert primary_metric(sets[1:], None) == "image_retrieval_recall@1"
    assert primary_metric(sets, "colours/mean_per_class_recall") == "colours/mean_per_class_recall"
    with pytest.raises(ConfigError, match=r"--metric: unknown value 'acc5'"):  # four classes
        primary_metric(sets, "acc5")


def outputs(model: DualEncoder) -> torch.Tensor:
    pixels = torch.randint(0, 255, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        return model.encode_image(pixels)


SAVED: dict[str, dict[str, Any]] = {
    "own head": {"pool": "ggem"},
    "swapped": {"pool": "avg"},
    "two embeddings and stages": {"pool": {"name": "mmcap", "args": {"tokens": 1, "stages": 1}}},
    "grafted": {"pool": "ggem", "pool_init": "preserve", "pool_base": "avg"},
}


@pytest.mark.long
@pytest.mark.parametrize("case", SAVED)
def test_every_state_is_saved_and_loads(
    tiny: Callable[..., DualEncoder], sets: list[EvalSet], tmp_path: Path, case: str
) -> None:
    model = tiny(**SAVED[case]).eval()
    if model.image.graft:
        torch.nn.init.ones_(model.image.pool.gate)
    swept = sweep(model, sets[1:], SweepConfig(p=[2.0, 7.0]), SPEED)
    for state, results in zip(swept.states, swept.results, strict=True):
        save_state(model, state, swept.put_in, tmp_path / state.name)
        again = mmrep.load(tmp_path / state.name)
        assert evaluate({"again": again}, sets[1:], SPEED)[0].evaluation.metrics == results[0].evaluation.metrics
        exponents = exponents_of(again.image.pool)
        if state.p is None:
            torch.testing.assert_close(outputs(again), outputs(model))
        else:
            assert exponents is not None
            torch.testing.assert_close(exponents, torch.full_like(exponents, state.p))
            assert not torch.allclose(outputs(again), outputs(model), atol=1e-3)
    assert exponents_of(model.image.pool) is None or not torch.allclose(
        exponents_of(model.image.pool), torch.tensor(7.0)
    )


def test_the_command(runs: dict[str, Trained], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, best = runs["avg"], tmp_path / "best"
    options = ["--p", "2,1", "--negatives", "shift", "--output_dir", str(tmp_path / "out"), "--workers", "0"]
    assert main(["sweep", str(run.folder), *options, "--save", str(best), "--metric", "validation/acc1"]) == 0
    shown = capsys.readouterr().out
    for text in ("trained", "p=1", "p=2", "acc1", "25.00", "'gem' in its place", "negatives: shift", "no test set"):
        assert text in shown
    content = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert content["put_in"] == {"name": "gem", "args": {"negatives": "shift"}}
    assert f"saved: {best} ({content['best']['model']})" in shown
    assert mmrep.load(best).config.pooling.name == ("avg" if content["best"]["p"] is None else "gem")
    assert main(["sweep", str(run.folder), *options, "--save", str(best)]) == 2
    assert "expected a new folder or an empty one" in capsys.readouterr().err
    again = ["sweep", str(run.folder), *options, "--metric", "validation/acc1"]
    assert main(again) == 0
    assert main([*again, "--p", "3"]) == 2
    assert "sweep.json: holds a sweep with another p, which would be lost: give another --o" in capsys.readouterr().err


def test_choosing_on_a_test_set_is_said(
    runs: dict[str, Trained], colour_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--p", "1", "--output_dir", str(tmp_path), "--workers", "0"]
    assert main(["sweep", str(runs["ggem"].folder), "--data", str(colour_set), *options]) == 0
    assert f"Chosen on 16 images of {colour_set}; {colour_set}: a test set of the run" in capsys.readouterr().out
    assert json.loads((tmp_path / "sweep.json").read_text())["test_sets_read"] == [str(colour_set)]


def test_changed_shards_are_said(runs: dict[str, Trained], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = runs["ggem"]
    held_out_sets(run.config, run.folder)
    assert not caplog.text
    summary = json.loads((run.folder / "summary.json").read_text())
    summary["data"]["identity"] = "0" * 16
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    held_out_sets(run.config, tmp_path)
    assert "it may have seen what is held out now" in caplog.text


def test_nothing_to_sweep(tiny: Callable[..., DualEncoder], sets: list[EvalSet]) -> None:
    wide = tiny({"name": "concat", "args": {"heads": ["cls", "avg"]}}).eval()
    with pytest.raises(ConfigError, match=r"nothing to sweep: 'concat' has no exponents, .* 32 channels, .* reads 64"):
        sweep(wide, sets, SweepConfig(), SPEED)
    with pytest.raises(ConfigError, match=r"--negatives: the trained 'gem' keeps its own"):
        sweep(tiny("gem").eval(), sets, SweepConfig(negatives="shift"), SPEED)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another task": ({"tasks": ("zeroshot", "knn")}, "task knn"),
    "another task alone": ({"tasks": ("knn",)}, "task knn"),
    "pairs": ({"task": "pairs"}, "task pairs"),
    "several classes": ({"multilabel": True}, "a multilabel set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_swept_is_refused_at_the_start(
    tiny: Callable[..., DualEncoder], runs: dict[str, Trained], sets: list[EvalSet], monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:  # fmt: skip
    change, found = REFUSED[case]
    wrong, message = (
        sets[0]._replace(**change),
        rf"evaluation set colours: {found} can't be swept; .*one class an image",
    )
    monkeypatch.setattr("mmrep.study.sweep.embed_images", lambda *_: pytest.fail("embedded"))
    monkeypatch.setattr("mmrep.study.sweep_run.load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match=message):
        sweep(tiny("ggem").eval(), [sets[1], wrong], SweepConfig(), SPEED)
    monkeypatch.setattr("mmrep.study.sweep_run.open_set", lambda _: wrong)
    with pytest.raises(ConfigError, match=message):
        sweep_run(runs["ggem"].folder, runs["ggem"].config, SweepConfig(), [SetConfig("x")])


WRONG = {
    "no run": ("{root}/none", "not a run: it has no config.yaml"),
    "unfinished": ("{root}/unfinished", "unfinished: not finished, it has no final/: continue it with `mmrep train"),
    "no validation": ("{root}/unsplit", "(data.validation.fraction 0): give --data DIR"),
    "zero": ("{run} --p 0", "--p: expected values from 0.01 to 100, got 0"),
    "too large": ("{run} --p 3,101", "--p: expected values from 0.01 to 100, got 101"),
    "no number": ("{run} --p 3,a", "p: expected float, got 'a'"),
    "not finite": ("{run} --p nan", "p: expected float, got 'nan'"),
    "twice": ("{run} --p 3,3.0", "--p: expected each value once"),
    "head": ("{run} --pool map", "--pool: unknown value 'map' (valid: gem, ggem, rgem)"),
    "negatives": ("{run} --negatives none", "--negatives: unknown value 'none'"),
    "metric": ("{run} --metric acc1", "--metric: unknown value 'acc1'"),
    "set": ("{run} --data {root}/none", "no such folder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(runs: dict[str, Trained], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root, run = tmp_path_factory.mktemp("wrong"), runs["ggem"].folder
    (root / "unfinished").mkdir()
    shutil.copy(run / "config.yaml", root / "unfinished")
    shutil.copytree(run / "final", root / "unsplit" / "final")
    text = (run / "config.yaml").read_text()
    assert "fraction: 0.4" in text
    (root / "unsplit" / "config.yaml").write_text(text.replace("fraction: 0.4", "fraction: 0.0"))
    return {"root": str(root), "run": str(run)}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use_is_one_line(case: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    command, message = (text.format(**places) for text in WRONG[case])
    assert main(["sweep", *command.split()]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""
