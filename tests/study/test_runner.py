"""A whole study on a tiny model: results, pairing, interruption, extension, refusal."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutations import ABSENT, VALUES, mutated, places

from mmrep.config.checks import ConfigError
from mmrep.config.study import DiagnosticsConfig, PrimaryConfig, StudyConfig
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.study import queue
from mmrep.study.collect import unpaired
from mmrep.study.report import markdown, metrics_of, read_results, terminal
from mmrep.study.runner import compare
from mmrep.training.signals import Stopped

Recipe = Callable[..., TrainConfig]
TRAINING = {"steps": 2, "checkpoint_steps": 0}


def study(
    recipe: Recipe,
    name: str = "study",
    seeds: tuple[int, ...] = (0,),
    pools: Any = ("avg", "ggem"),
    images: int = 0,
    **parts: Any,
) -> CompareConfig:
    config = recipe(name, **{"training": TRAINING, **parts})
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    return CompareConfig(
        **fields, study=StudyConfig(pools=list(pools), seeds=list(seeds), diagnostics=DiagnosticsConfig(images))
    )


def test_results_have_the_schema(recipe: Recipe) -> None:
    pools = ["avg", "cls", {"name": "ggem", "args": {"groups": 4}}]
    config = study(recipe, pools=pools)
    results = compare(config, "")
    folder = Path(config.output_dir)
    assert json.loads((folder / "results.json").read_text()) == results == read_results(folder)
    assert (results["schema"], results["baseline"], results["paired"]) == (3, "avg", True)
    assert [(run["pool"], run["seed"]) for run in results["runs"]] == [("avg", 0), ("cls", 0), ("ggem_groups-4", 0)]
    for run in results["runs"]:
        assert set(run["metrics"]) == set(run["chance"]) == set(run["items"])
        assert run["items"]["pairs/image_retrieval_recall@1"] == 16
        assert {"colours/acc1", "pairs/image_retrieval_recall@1"} <= set(run["metrics"])
        assert set(run["cost"]) == {"params", "gmacs", "pairs_per_s", "images_per_s", "peak_mb"}
        assert all(value > 0 for value in run["cost"].values())
    assert {d["a"] for d in results["differences"]} == {"cls", "ggem_groups-4"}
    for d in results["differences"]:
        assert d["exploratory"] == (d["metric"] != "colours/acc1")
        a, b = (next(r for r in results["runs"] if r["pool"] == d[side])["metrics"][d["metric"]] for side in "ab")
        assert d["mean"] == pytest.approx(a - b)
        assert d["verdict"] is None
    params = {run["pool"]: run["cost"]["params"] for run in results["runs"]}
    assert params["ggem_groups-4"] == params["avg"] + 4
    report = (folder / "report.md").read_text()
    shown = terminal(results)
    for text in (report, " ".join(shown.split())):
        assert "Fewer than 3 seeds: " in text
        assert "A demonstration: 16 patch tokens" in text
        assert "ggem_groups-4" in text


def test_runs_of_a_seed_are_paired_and_digests_prove_it(recipe: Recipe) -> None:
    config = study(recipe, seeds=(0, 1))
    compare(config, "")
    runs = Path(config.output_dir) / "runs"
    batches = {run.name: json.loads((run / "summary.json").read_text())["batches"] for run in runs.iterdir()}
    assert batches["avg-0"] == batches["ggem-0"] != batches["avg-1"] == batches["ggem-1"]
    initial = {run.name: json.loads((run / "initial.json").read_text()) for run in runs.iterdir()}
    assert initial["avg-0"].items() <= initial["ggem-0"].items()
    assert set(initial["ggem-0"]) - set(initial["avg-0"]) == {"image.pool.log_exponent"}


def test_a_second_call_trains_nothing_and_more_seeds_may_be_added(recipe: Recipe) -> None:
    config = study(recipe)
    first = compare(config, "")
    summaries = {p: p.stat().st_mtime_ns for p in Path(config.output_dir).rglob("summary.json")}
    assert compare(config, "") == first
    assert {p: p.stat().st_mtime_ns for p in Path(config.output_dir).rglob("summary.json")} == summaries
    more = compare(study(recipe, seeds=(0, 1, 2)), "")
    assert more["runs"][:2] == first["runs"]
    assert {d["seeds"] for d in more["differences"]} == {3}
    judged = {d["metric"] for d in more["differences"] if d["verdict"] is not None}
    assert judged == {more["primary"]} == {"colours/acc1"}
    assert {d["verdict"] for d in more["differences"]} <= {"better", "worse", "cannot tell", None}
    shown = terminal(more)
    assert "Exploratory: intervals of single differences, unadjusted, no verdicts." in shown
    assert shown.count("verdict") == 2  # of the primary metric's table, and in the line above
    chosen = dataclasses.replace(
        study(recipe, seeds=(0, 1, 2)),
        study=StudyConfig(
            pools=["avg", "ggem"],
            seeds=[0, 1, 2],
            primary=PrimaryConfig("pairs/text_retrieval_recall@1"),
            diagnostics=DiagnosticsConfig(0),
        ),
    )
    other = compare(chosen, "")
    assert {d["metric"] for d in other["differences"] if d["verdict"]} == {"pairs/text_retrieval_recall@1"}
    wrong = dataclasses.replace(chosen, study=dataclasses.replace(chosen.study, primary=PrimaryConfig("pairs/acc1")))
    assert not any(d["verdict"] for d in compare(wrong, "")["differences"])
    with pytest.raises(
        ConfigError, match="study.primary.metric 'flickr/acc1': not a set of evaluation.sets .colours, pai"
    ):
        dataclasses.replace(chosen, study=dataclasses.replace(chosen.study, primary=PrimaryConfig("flickr/acc1")))


def test_an_interrupted_study_goes_on(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(study(recipe, "whole"), "")
    real, calls = queue.train, []

    def interrupted(config: TrainConfig, *args: Any, **kwargs: Any) -> Path:
        calls.append(config.output_dir)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(config, *args, **kwargs)

    monkeypatch.setattr(queue, "train", interrupted)
    with pytest.raises(Stopped, match="continue with:\n  mmrep compare --again"):
        compare(study(recipe, "cut"), "mmrep compare --again")
    again = compare(study(recipe, "cut"), "")
    assert [run["metrics"] for run in again["runs"]] == [run["metrics"] for run in whole["runs"]]
    assert again["batches"] == whole["batches"]


def test_another_recipe_in_the_same_folder_is_refused(recipe: Recipe) -> None:
    compare(study(recipe), "")
    with pytest.raises(ConfigError, match="holds a study with training.steps = 2, not 3: choose another --output_dir"):
        compare(study(recipe, training={**TRAINING, "steps": 3}), "")


def test_runs_that_are_not_paired_give_no_differences(recipe: Recipe) -> None:
    config = study(recipe)
    compare(config, "")
    place = Path(config.output_dir) / "runs" / "ggem-0" / "summary.json"
    summary = json.loads(place.read_text())
    place.write_text(json.dumps({**summary, "batches": "0" * 16}))
    results = compare(config, "")
    assert not results["paired"]
    assert results["differences"] == []
    assert "Not paired, so no differences: ggem and avg of seed 0 saw other batches" in terminal(results)


def test_other_initial_values_are_noticed() -> None:
    avg = {"image.norm.weight": "(4,) aa", "logit_scale": "(1,) bb"}
    assert unpaired({("avg", 0): ("x", avg), ("ggem", 0): ("x", {**avg, "image.pool.log_exponent": "(2,) cc"})}) == ""
    wider = {**avg, "image.norm.weight": "(8,) dd"}
    assert unpaired({("avg", 0): ("x", avg), ("concat", 0): ("x", wider)}) == ""
    moved = {**avg, "image.norm.weight": "(4,) ee"}
    assert "started with other values of image.norm.weight" in unpaired(
        {("avg", 0): ("x", avg), ("max", 0): ("x", moved)}
    )


def test_every_pair_of_heads_is_compared() -> None:
    wide, other = ({"image.projection.weight": f"(8, 4) {digest}"} for digest in ("aa", "bb"))
    evidence = {("avg", 0): ("x", {"image.projection.weight": "(4, 4) cc"}), ("avgmax", 0): ("x", wide)}
    assert unpaired({**evidence, ("concat", 1): ("x", other)}) == ""
    assert (
        unpaired({**evidence, ("concat", 0): ("x", other)})
        == "concat and avgmax of seed 0 started with other values of image.projection.weight"
    )


def test_preserved_heads_may_have_their_zero_columns_in_other_places() -> None:
    first, second = (
        {"image.projection.weight": f"(8, 4) {digest}", "image.auxiliary_projections.0.weight": f"(8, 4) {digest}"}
        for digest in ("aa", "bb")
    )
    evidence = {("a", 0): ("x", first), ("b", 0): ("x", second)}
    assert unpaired(evidence, preserve=True) == ""
    assert "other values of image.projection.weight" in unpaired(evidence)
    moved = {("a", 0): ("x", {"image.norm.weight": "(4,) aa"}), ("b", 0): ("x", {"image.norm.weight": "(4,) bb"})}
    assert "other values of image.norm.weight" in unpaired(moved, preserve=True)


def test_results_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a study is finished when it is there"):
        read_results(tmp_path)


def test_every_task_has_its_main_metric_in_the_first_table() -> None:
    main = [
        "a/acc1", "a/lp_acc1", "a/knn_acc1@20", "a/finetune_acc1", "a/corruption_acc1", "a/occlusion_acc1@0.5",
        "a/instance_map", "b/image_retrieval_recall@1", "b/text_retrieval_recall@1", "b/text_acc", "b/image_acc",
        "b/acc", "b/reranked_image_retrieval_recall@1", "c/mean_average_precision", "d/instance_medium_map",
    ]  # fmt: skip
    other = [
        "a/acc5", "a/mean_per_class_recall", "a/lp_acc5", "a/lp_mean_per_class_recall", "a/instance_recall@1",
        "a/finetune_mean_per_class_recall", "a/instance_map@10", "b/image_retrieval_recall@10", "d/instance_easy_mp@1",
        "b/reranked_image_retrieval_recall@10",
    ]  # fmt: skip
    unknown = ["e/something_new", "e/else"]
    results = {"runs": [{"metrics": dict.fromkeys([*main, *other, *unknown], 0.5)}]}
    assert metrics_of(results, primary=True) == [*main, *unknown]
    assert metrics_of(results, primary=False) == [*main, *other, *unknown]


@pytest.mark.long
def test_malformed_results_are_one_line(recipe: Recipe, unchecked: None) -> None:
    """A seeded sample of all places and values, the diagnostics' included."""
    config = study(recipe, images=8)
    results = compare(config, "")
    place, random = Path(config.output_dir) / "results.json", Random(0)
    all_places = list(places(results))
    top = [path for path in all_places if path[0] != "diagnostics"]
    for path in random.sample(top, min(150, len(top))) + random.sample(all_places, 150):
        place.write_text(json.dumps(mutated(results, path, random.choice([*VALUES, ABSENT]))))
        try:
            shown = read_results(Path(config.output_dir))
        except ConfigError as error:
            assert "results.json: " in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            assert terminal(shown) and markdown(shown, "Study")
