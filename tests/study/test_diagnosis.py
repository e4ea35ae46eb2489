"""What a study says about the inside of its models: measured once, kept with each run, shown in the report."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import colour_samples, write_tar
from PIL import Image
from synthetic import study_results

from mmrep.config.evaluation import SetConfig
from mmrep.config.study import DiagnosticsConfig, StudyConfig
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.data.scenes import Split, encode_png, scene
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.records import ShardRecords
from mmrep.study import diagnosis
from mmrep.study.collect import collect
from mmrep.study.diagnosis import DIAGNOSTICS, MAPS, diagnosable_set, diagnose
from mmrep.study.plan import plan_runs
from mmrep.study.report import markdown, terminal
from mmrep.study.report.facts import Facts
from mmrep.study.report.inside import left_out, tables
from mmrep.study.runner import compare

Recipe = Callable[..., TrainConfig]


def study(recipe: Recipe, name: str = "study", sets: Any = None, **wanted: Any) -> CompareConfig:
    training = {"steps": 2, "checkpoint_steps": 0}
    config = recipe(name, training=training, evaluation={"sets": sets} if sets else {})
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(TrainConfig)}
    diagnostics = DiagnosticsConfig(**{"pictures": 2, "sizes": [12, 16]} | wanted)
    return CompareConfig(**fields, study=StudyConfig(pools=["cls", "avg", "ggem"], diagnostics=diagnostics))


def test_everything_is_measured_kept_and_shown(recipe: Recipe, tmp_path: Path) -> None:
    samples = []
    for i in range(12):
        drawn = scene(0, i, 16, Split.CLASSES)
        mask = encode_png(drawn.mask.astype(np.uint8) * 255)
        samples.append((f"{i:03d}", {"png": encode_png(drawn.image), "mask.png": mask, "cls": b"%d" % (i % 4)}))
    write_tar(tmp_path / "masked" / "test" / "0.tar", samples)
    (tmp_path / "masked" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "masked" / "classnames.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "masked" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    config = study(recipe, sets=[SetConfig(str(tmp_path / "masked"))])
    results = compare(config, "")
    folder = Path(config.output_dir)
    assert json.loads((folder / "results.json").read_text()) == results
    found = results["diagnostics"]["runs"]
    assert list(found) == ["cls-0", "avg-0", "ggem-0"]
    for each in found.values():
        assert each["left_out"] == {}
        assert len(each["variance"]["points"]) == 5
        assert each["removal"]["images"] == each["images"] == 12
        assert [point["size"] for point in each["resolution"]] == [[12, 12], [16, 16]]
    assert found["avg-0"]["resolution"][1]["accuracy"] == pytest.approx(
        next(run for run in results["runs"] if run["pool"] == "avg")["metrics"]["masked/acc1"]
    )
    assert found["cls-0"]["patch_weights"]["sum"] == 0
    assert found["avg-0"]["patch_weights"]["sum"] == pytest.approx(1, abs=1e-4)
    assert found["ggem-0"]["exponents"]["steps"] == [1, 2]
    assert len(found["ggem-0"]["exponents"]["final"]) == 2
    assert found["avg-0"]["exponents"]["final"] == []
    report = (folder / "report.md").read_text()
    made = tables(Facts(results))
    for table in made:
        assert f"### {table.title}\n" in report
        assert (table.title in terminal(results)) == table.short
        assert all(row.keys() == {column.key for column in table.columns} for row in table.rows)
    assert len(made) == 5
    assert f"({MAPS})" in report
    with Image.open(folder / MAPS) as sheet:
        assert sheet.size[0] > 300


@pytest.mark.long
def test_measured_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(study(recipe, images=4), "")
    monkeypatch.setattr(diagnosis, "_measure", lambda *_: pytest.fail("measured again"))
    assert compare(study(recipe, images=4), "") == first
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        compare(study(recipe, images=5), "")


def test_what_can_not_be_measured_is_said(recipe: Recipe) -> None:
    results = compare(study(recipe, sizes=[10, 16], pictures=0), "")
    (masks, size) = left_out(results)
    assert "have no mask.png" in masks
    assert "expected multiples of the patch size (4, 4)" in size
    report = (Path(study(recipe).output_dir) / "report.md").read_text()
    assert f"Not measured: {masks}." in report
    assert MAPS not in report
    last = tables(Facts(results))[-1]
    assert last.title == "Over resolution and latency"
    assert [column.key for column in last.columns] == ["pool", "16 px", "16 ms"]


@pytest.mark.long
def test_retrieval_sets_serve_too(recipe: Recipe, colour_set: Path) -> None:
    results = compare(study(recipe, sets=[SetConfig(str(colour_set / "retrieval"), name="pairs")], sizes=None), "")
    assert results["diagnostics"]["metric"] == "image_retrieval_recall@1"
    points = results["diagnostics"]["runs"]["avg-0"]["resolution"]
    assert [point["size"][0] for point in points] == [12, 16, 20, 24]
    assert any("has no classes" in reason for reason in left_out(results))


@pytest.mark.long
def test_a_set_asked_for_other_tasks_serves_too(recipe: Recipe, colour_set: Path, tmp_path: Path) -> None:
    shutil.copytree(colour_set, tmp_path / "colours")
    (tmp_path / "colours/train/nshards.txt").write_text("3")
    sets = [
        SetConfig(str(colour_set / "retrieval"), name="choices", task="pairs"),
        SetConfig(str(tmp_path / "colours"), name="colours", task=["knn"]),
    ]
    results = compare(study(recipe, sets=sets[1:], pictures=0), "")
    assert {name.partition("@")[0] for name in results["runs"][0]["metrics"]} == {"colours/knn_acc1"}
    assert (results["diagnostics"]["dataset"], results["diagnostics"]["metric"]) == ("colours", "acc1")
    assert all(each["resolution"] for each in results["diagnostics"]["runs"].values())
    found = diagnosable_set(sets)
    assert found is not None and (found.name, found.tasks) == ("choices", ())


@pytest.mark.long
def test_sets_that_can_not_be_diagnosed_are_passed_over(
    recipe: Recipe, colour_set: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = study(recipe)
    compare(dataclasses.replace(config, study=dataclasses.replace(config.study, diagnostics=DiagnosticsConfig(0))), "")
    classes = open_set(SetConfig(str(colour_set)))
    by_name = {"several": classes._replace(multilabel=True), "pairs": classes._replace(task="pairs"), "one": classes}
    monkeypatch.setattr(diagnosis, "open_set", lambda each: by_name[each.name])
    several, pairs, one = (SetConfig("x", name=name) for name in by_name)
    assert diagnosable_set([several, pairs, one]) == classes._replace(tasks=())
    none = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, sets=[several, pairs]))
    diagnose(none, plan_runs(config))
    assert not list(Path(config.output_dir).rglob(DIAGNOSTICS))
    assert "no diagnostics: no evaluation set has captions, or one class an image" in caplog.text


@pytest.mark.long
def test_other_images_under_the_same_name_are_measured_again(recipe: Recipe, colour_set: Path, tmp_path: Path) -> None:
    place = tmp_path / "set"
    shutil.copytree(colour_set, place)
    config = study(recipe, sets=[SetConfig(str(place))], images=4, pictures=0)
    keys = [compare(config, "")["diagnostics"]["runs"]["avg-0"]["key"]]

    def measured_again() -> str:
        diagnose(config, plan_runs(config))
        return str(collect(config, "")["diagnostics"]["runs"]["avg-0"]["key"])

    write_tar(place / "test" / "0.tar", colour_samples(16, 150))
    keys.append(measured_again())
    (place / "classnames.txt").write_text("a\nb\nc\nd\n")
    keys += [measured_again(), measured_again()]
    assert len(set(keys)) == 3 and keys[2] == keys[3]


def test_none_are_taken_if_none_are_wanted(recipe: Recipe) -> None:
    config = study(recipe, images=0)
    results = compare(config, "")
    assert "diagnostics" not in results
    assert tables(Facts(results)) == left_out(results) == []
    assert not list(Path(config.output_dir).rglob(DIAGNOSTICS))


def test_interruption_says_how_to_go_on(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmrep.training.signals import Stopped

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnosis, "_measure", interrupt)
    with pytest.raises(Stopped, match="mmrep compare --again"):
        compare(study(recipe), "mmrep compare --again")


@pytest.mark.long
def test_a_failure_inside_costs_no_study(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory,\nsadly")

    monkeypatch.setattr(diagnosis, "patch_weights", fail)
    results = compare(study(recipe), "")
    assert "out of memory, sadly" in left_out(results)
    assert "maps" not in results["diagnostics"]
    assert len(results["differences"]) > 0


@pytest.mark.long
def test_a_half_written_file_is_measured_again(recipe: Recipe) -> None:
    config = study(recipe, images=4)
    first = compare(config, "")
    place = Path(config.output_dir) / "runs" / "avg-0" / DIAGNOSTICS
    place.write_text(place.read_text()[:40])
    again = compare(config, "")
    runs = [results["diagnostics"]["runs"]["avg-0"] for results in (first, again)]
    assert runs[0]["variance"] == runs[1]["variance"]
    assert json.loads(place.read_text())["key"] == runs[0]["key"]


def test_samples_are_drawn_over_all_classes(unchecked: None) -> None:
    labels = [i % 64 for i in range(1280)]
    evalset = EvalSet("x", "zeroshot", ShardRecords([(None, i) for i in range(1280)], "cls"), [], [])  # type: ignore[misc, list-item]  # no shard is read
    for count in (320, 640, 1000):
        rows = [row for _, row in diagnosis._spread(evalset, count).records.samples]
        assert len(rows) == count == len(set(rows))
        assert len({labels[row] for row in rows}) > 60
        assert max(rows) > 1200
    assert diagnosis._spread(evalset, 2000) == evalset


def test_numbers_stand_in_the_columns_that_name_them() -> None:
    run = {
        "images": 4, "accuracy_images": 4, "variance": None, "resolution": [], "left_out": {},
        "patch_weights": {"effective_share": 0.25, "sum": 1.0},
        "dead_units": {
            "off_share": [0.5], "dead": [1], "units": [8], "overall_off_share": 0.5, "overall_dead_share": 0.125
        },
        "dependence": {"between": 0.1, "within": 0.2, "hsic_rbf": 0.3, "floor": 0.01},
        "removal": {"whole": 0.9, "salient": 0.1, "control": 0.8, "overlap": 0.05},
        "exponents": {"steps": [], "min": [], "median": [], "max": []},
    }  # fmt: skip
    results = study_results(heads=("avg",), seeds=1)
    results["diagnostics"] = {"dataset": "x", "metric": "acc1", "runs": {"avg-0": run}}
    overview, removal = tables(Facts(results))
    assert overview.rows == [
        {"pool": "avg", "effective": 0.25, "off": 0.5, "dead": 0.125, "between": 0.1, "within": 0.2, "hsic": 0.3}
    ]
    assert removal.rows == [{"pool": "avg", "whole": 0.9, "salient": 0.1, "control": 0.8, "overlap": 0.05}]
    shown = markdown(results)
    assert "| avg | 25.0 | 50.0 | 12.5 | 0.100 | 0.200 | 0.300 |" in shown
    assert "| avg | 90.0 | 10.0 | 80.0 | 5.0 |" in shown
