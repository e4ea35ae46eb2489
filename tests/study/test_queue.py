"""The queue of a study: failures, workers side by side, takeover, tuning, axes, seeds that vary apart."""

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.study import DiagnosticsConfig, PrimaryConfig, StudyConfig, TuneConfig
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.files import locked
from mmrep.study import queue, runner
from mmrep.study.collect import collect, read_study
from mmrep.study.dry_run import dry_run, power_line
from mmrep.study.plan import plan_runs, tuning_runs
from mmrep.study.report import markdown
from mmrep.study.report.answer import badges
from mmrep.study.report.arms import main_table
from mmrep.study.report.facts import Facts
from mmrep.study.runner import compare
from mmrep.training.checkpoint import Diverged
from mmrep.training.trainer import train

Recipe = Callable[..., TrainConfig]
COMMAND = "mmrep compare --config x.yaml"


def study(recipe: Recipe, name: str = "study", parts: Any = None, **fields: Any) -> CompareConfig:
    """A study of two heads without diagnostics, two steps a run."""
    config = recipe(name, training={"steps": 2, "checkpoint_steps": 0}, **(parts or {}))
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    wanted = {"pools": ["avg", "ggem"], "diagnostics": DiagnosticsConfig(0)} | fields
    return CompareConfig(**own, study=StudyConfig(**wanted))


def test_a_failed_run_is_reported_and_the_rest_goes_on(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tried = study(recipe, seeds=[0, 1]), []

    def failing(run: TrainConfig, *args: Any, **kwargs: Any) -> Path:
        tried.append(Path(run.output_dir).name)
        if Path(run.output_dir).name == "avg-1":
            raise Diverged("the loss is nan at step 1,\nsadly")
        if Path(run.output_dir).name == "ggem-1":
            raise ZeroDivisionError
        return train(run, *args, **kwargs)

    monkeypatch.setattr(queue, "train", failing)
    results = compare(config, COMMAND)
    assert tried == ["avg-0", "ggem-0", "avg-1", "ggem-1"], "each once"
    assert [(run["pool"], run["seed"]) for run in results["runs"]] == [("avg", 0), ("ggem", 0)]
    messages = {f"{run['pool']}-{run['seed']}": run["message"] for run in results["failed"]}
    assert messages == {"avg-1": "the loss is nan at step 1, sadly", "ggem-1": "ZeroDivisionError: ZeroDivisionError"}
    assert results["interim"] and results["missing"] == 0
    recorded = json.loads((Path(config.output_dir) / "runs/ggem-1/failure.json").read_text())
    assert "test_queue.py" in recorded["traceback"]
    monkeypatch.setattr(queue, "train", train)
    again = compare(config, COMMAND)
    assert (len(again["runs"]), again["failed"], again["interim"]) == (4, [], False)


def test_a_run_that_another_worker_trains_is_left_to_it(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(study(recipe), join=True)
    with locked(Path(config.output_dir) / "runs/avg-0"):
        results = compare(config, COMMAND)
        assert [run["pool"] for run in results["runs"]] == ["ggem"]
        assert (results["missing"], results["differences"]) == (1, [])
    # The lock is free and the run is not finished, as after the death of a worker: another one takes it over.
    assert [run["pool"] for run in compare(config, COMMAND)["runs"]] == ["avg", "ggem"]


def test_a_worker_waits_for_the_last_run_of_another_and_takes_it_over(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, looked = study(recipe), threading.Event()
    monkeypatch.setattr(queue.time, "sleep", lambda _: looked.set())
    done: dict[str, Any] = {}
    (Path(config.output_dir) / "runs/avg-0").mkdir(parents=True)
    with locked(Path(config.output_dir) / "runs/avg-0"):
        worker = threading.Thread(target=lambda: done.update(compare(config, COMMAND)))
        worker.start()
        assert looked.wait(120) and not done
    worker.join(120)
    assert [run["pool"] for run in done["runs"]] == ["avg", "ggem"]


def test_every_head_gets_the_same_tuning_and_no_tuning_run_sees_a_test_set(recipe: Recipe) -> None:
    tune = TuneConfig({"optim.lr": [1e-6, 1e-2]}, seeds=[7, 8])
    config = study(recipe, tune=tune)
    folder = Path(config.output_dir)
    assert plan_runs(config) == []
    assert len(tuning_runs(config)) == 8
    results = compare(config, COMMAND)
    for pool in ("avg", "ggem"):
        runs = [run for run in results["tuning"]["runs"] if run["pool"] == pool]
        assert sorted((run["at"]["optim.lr"], run["seed"]) for run in runs) == [
            (a, s) for a in (1e-6, 1e-2) for s in (7, 8)
        ]
        means = {lr: sum(run["value"] for run in runs if run["at"]["optim.lr"] == lr) for lr in (1e-6, 1e-2)}
        chosen = results["tuning"]["chosen"][pool]["optim.lr"]
        assert means[chosen] == max(means.values())
        assert json.loads((folder / f"runs/{pool}-0/summary.json").read_text())["config"]["optim"]["lr"] == chosen
    assert results["tuning"]["edge"] == ["avg", "ggem"], "of two values each is an end"
    assert not list((folder / "tuning").rglob("results.json"))
    with pytest.raises(ConfigError, match="study.tune: was .*restore it"):
        compare(dataclasses.replace(config, study=dataclasses.replace(config.study, tune=TuneConfig())), COMMAND)


@pytest.mark.long
def test_a_value_that_fails_is_not_chosen(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: TrainConfig, *args: Any, **kwargs: Any) -> Path:
        if run.optim.lr > 1e-3 and (run.seed == 8 or "avg" in run.output_dir) and "tuning" in run.output_dir:
            raise Diverged("nan")
        return train(run, *args, **kwargs)

    monkeypatch.setattr(queue, "train", failing)
    results = compare(study(recipe, tune=TuneConfig({"optim.lr": [1e-3, 1e-2]}, seeds=[7, 8])), COMMAND)
    assert results["tuning"]["chosen"] == {"avg": {"optim.lr": 1e-3}, "ggem": {"optim.lr": 1e-3}}

    def without_avg(run: TrainConfig, *args: Any, **kwargs: Any) -> Path:
        if "avg" in run.output_dir:
            raise Diverged("nan")
        return train(run, *args, **kwargs)

    monkeypatch.setattr(queue, "train", without_avg)
    other = compare(study(recipe, "other", tune=TuneConfig({"optim.lr": [1e-3, 1e-2]}, seeds=[7])), COMMAND)
    assert list(other["tuning"]["chosen"]) == ["ggem"]
    message = "left out: no value of its grid could be trained with every seed: nan"
    assert other["failed"] == [{"pool": "avg", "seed": 0, "message": message}]
    assert (
        "A tuning run failed, so its value was not chosen: tuning avg optim.lr 0.001 seed 7: nan." in other["unequal"]
    )
    assert (other["interim"], other["missing"]) == (True, 0)
    assert [run["pool"] for run in other["runs"]] == ["ggem"]


@pytest.mark.long
def test_heads_are_compared_at_the_same_point_of_the_axes(recipe: Recipe) -> None:
    config = study(recipe, axes={"optim.lr": [1e-3, 1e-2], "model.image.args.depth": [1]})
    results = compare(config, COMMAND)
    assert [run["pool"] for run in results["runs"]] == [
        f"{head},lr={lr},depth=1" for lr in (0.001, 0.01) for head in ("avg", "ggem")
    ]
    assert results["runs"][2]["at"] == {"optim.lr": 0.01, "model.image.args.depth": 1}
    assert {(d["a"], d["b"]) for d in results["differences"]} == {
        (f"ggem,lr={lr},depth=1", f"avg,lr={lr},depth=1") for lr in (0.001, 0.01)
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": {"optim.lrr": [1e-3]}}, "study.axes: no option 'lrr'; did you mean 'lr'"),
        ({"axes": {"optim.lr": ["fast"]}}, "study.axes.lr: expected float, got 'fast'"),
        ({"axes": {"optim.lr": [-1.0]}}, "study.axes: optim.lr: expected a value > 0"),
        ({"axes": {"optim.lr": []}}, "study.axes.optim.lr: expected a list of values"),
        ({"axes": {"seed": [1]}}, "study.axes.seed: not an option of the recipe"),
        ({"tune": TuneConfig({"optim.lr": [1e-3]}, seeds=[0])}, r"study.tune.seeds: \[0\] are seeds of the study too"),
        ({"primary": PrimaryConfig(contrasts=["ggem - agv"])}, "no head 'agv'; did you mean 'avg'"),
        ({"pools": [{"name": "avg", "head_seed": -1}]}, r"study.pools\[0\].head_seed: expected a whole number"),
        ({"vary": []}, "study.vary: expected at least one of data, trunk, head"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(recipe: Recipe, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(recipe, **fields)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("ggem-avg", "expected two heads, as in 'ggem - avg'"),
        ({"contrast": "ggem - avg", "margin": -1}, "margin: expected percentage points > 0, got -1"),
        ({"a": "ggem"}, "unknown key"),
        ("avg - avg", "expected two heads"),
    ],
)
def test_a_contrast_that_is_none_is_refused(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrimaryConfig(contrasts=[entry])


@pytest.mark.long
def test_what_a_seed_does_not_vary_stays(recipe: Recipe) -> None:
    for vary, same in ((["head"], "data trunk"), (["data"], "trunk head"), (["trunk"], "data head")):
        config = study(recipe, "_".join(vary), seeds=[3, 4], vary=vary)
        results, folder = compare(config, COMMAND), Path(config.output_dir) / "runs"
        initial = [json.loads((folder / f"avg-{seed}" / "initial.json").read_text()) for seed in (3, 4)]
        equal = {name for name in initial[0] if initial[0][name] == initial[1][name]}
        weights = {"trunk": "image.trunk.blocks.0.mlp.fc1.weight", "head": "image.projection.weight"}
        for part, name in weights.items():
            assert (name in equal) == (part in same), (vary, part)
        assert (len(set(results["batches"].values())) == 1) == ("data" in same)


@pytest.mark.long
def test_the_same_head_from_other_values_is_a_control(recipe: Recipe) -> None:
    pools = [
        "avg",
        {"name": "avg", "head_seed": 1},
        "ggem",
        {"name": "ggem", "args": {"grouping": "random"}, "label": "random"},
    ]
    results = compare(study(recipe, pools=pools, seeds=[0, 1, 2]), COMMAND)
    assert results["paired"]
    assert [(each["a"], each["b"]) for each in results["controls"]] == [("avg_head-seed-1", "avg"), ("random", "ggem")]
    labels = [badge.label for badge in badges(Facts(results)) if badge.label.startswith("control")]
    assert len(labels) == 2 and "control not judged" not in labels
    own = [run["metrics"] for run in results["runs"] if run["pool"] == "avg"]
    other = [run["metrics"] for run in results["runs"] if run["pool"] == "avg_head-seed-1"]
    assert own != other


def test_with_contrasts_every_other_arm_is_still_compared_with_its_own_baseline(recipe: Recipe) -> None:
    primary = PrimaryConfig(contrasts=["max,lr=0.01 - avg,lr=0.01"])
    config = study(recipe, pools=["avg", "max"], axes={"optim.lr": [1e-3, 1e-2]}, primary=primary)
    results = compare(config, COMMAND)
    found = {(d["a"], d["b"]) for d in results["differences"]}
    assert found == {("max,lr=0.01", "avg,lr=0.01"), ("max,lr=0.001", "avg,lr=0.001")}
    table = main_table(Facts(results))
    assert table is not None
    assert [row["pool"] for row in table.rows if "difference" in row] == ["max,lr=0.001", "max,lr=0.01"]


def test_options_of_any_type_can_be_tuned(recipe: Recipe) -> None:
    tune = TuneConfig({"optim.schedule": ["cosine", "constant"]}, seeds=[7])
    assert [run.name for run in tuning_runs(study(recipe, tune=tune))][:2] == [
        "tuning avg optim.schedule cosine seed 7",
        "tuning ggem optim.schedule cosine seed 7",
    ]


@pytest.mark.long
def test_seeds_that_are_added_later_are_recorded(recipe: Recipe) -> None:
    assert compare(study(recipe, seeds=[0]), COMMAND)["history"] == []
    results = compare(study(recipe, seeds=[0, 1], pools=["avg", "ggem", "max"]), COMMAND)
    assert len(results["history"]) == 1 and results["registered"]
    assert results["history"][0]["text"] == "seeds: added 1; pools: added max, after 2 runs were finished"
    other = PrimaryConfig("pairs/image_retrieval_recall@1")
    results = compare(study(recipe, seeds=[0, 1], pools=["avg", "ggem", "max"], primary=other), COMMAND)
    assert results["history"][1]["text"].startswith("primary: changed from")
    assert not results["registered"]
    assert "claim changed" in [badge.label for badge in badges(Facts(results))]
    assert "chosen beforehand" not in markdown(results)


def test_the_report_is_made_of_whatever_is_finished(recipe: Recipe) -> None:
    config = study(recipe, seeds=[0, 1])
    folder = Path(config.output_dir)
    whole = compare(config, COMMAND)
    read = read_study(folder)
    assert read is not None and collect(read, COMMAND) == whole
    (folder / "runs/ggem-1/summary.json").unlink()
    part = collect(read, COMMAND)
    assert (len(part["runs"]), part["missing"], part["interim"]) == (3, 1, True)


def test_dry_run_shows_costs_and_what_can_be_detected(recipe: Recipe) -> None:
    import torch

    from mmrep.training.build import with_precision

    config = study(recipe, seeds=[0, 1, 2, 3, 4], tune=TuneConfig({"optim.lr": [1e-3, 1e-2]}, seeds=[7]))
    cpu = torch.device("cpu")
    text = dry_run(with_precision(config, cpu), cpu)
    assert "avg      7" in text.replace("avg   7", "avg      7")
    assert "14 runs" in text and "With 5 seeds and 1 contrast it detects a difference of" in text
    assert not Path(config.output_dir).exists()
    assert "no verdict; give study.seeds at least 3" in power_line(study(recipe, seeds=[0, 1]))


class _Worker:
    """A stand-in for a worker's process: the words and the environment that it was started with."""

    started: ClassVar[list[tuple[list[str], dict[str, str]]]] = []
    returncode = 0

    def __init__(self, words: list[str], env: dict[str, str], **_: Any) -> None:
        self.started.append((words, env))

    def poll(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("workers", "gpus", "devices"), [("auto", 3, ["0", "1", "2"]), (2, 0, [None, None]), (3, 2, ["0", "1", "0"])]
)
def test_one_worker_a_gpu_and_what_they_leave_is_trained_here(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, workers: Any, gpus: int, devices: list[str | None]
) -> None:
    monkeypatch.setattr(_Worker, "started", [])
    monkeypatch.setattr(runner.subprocess, "Popen", _Worker)
    monkeypatch.setattr(runner, "_visible_devices", lambda: [str(i) for i in range(gpus)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = dataclasses.replace(study(recipe), workers=workers)
    results = compare(config, "mmrep compare --config x.yaml --workers auto")
    assert [env.get("CUDA_VISIBLE_DEVICES") for _, env in _Worker.started] == devices
    assert {tuple(words[1:]) for words, _ in _Worker.started} == {
        ("-m", "mmrep", "compare", "--config", "x.yaml", "--workers", "auto", "--join", "true")
    }
    assert len(results["runs"]) == 2


def test_workers_do_not_split_the_processes_of_a_launcher(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.distributed, "launched", lambda: 2)
    with pytest.raises(ConfigError, match="workers: each worker has one process; leave accelerate launch out"):
        compare(dataclasses.replace(study(recipe), workers=2), COMMAND)
