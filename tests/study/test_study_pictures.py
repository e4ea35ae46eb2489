"""Pictures of where the heads of a study differ: which are chosen, what they say, and how they reach the report."""

import base64
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recipes import make_recipe

from mmrep.config.study import DiagnosticsConfig, StudyConfig
from mmrep.config.tree import ScreenConfig, TrainConfig
from mmrep.study import pictures
from mmrep.study.collect import collect, finished_runs, read_study, write_study
from mmrep.study.pictures import study_pictures, write_pictures
from mmrep.study.runner import compare_on_one_trunk


@pytest.fixture(scope="module")
def screened(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screened") / "study"
    config = make_recipe(colour_set, folder, training={"steps": 2}, evaluation={"workers": 0})
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    wanted = StudyConfig(pools=["avg", "ggem"], seeds=[3, 5], diagnostics=DiagnosticsConfig(pictures=1))
    compare_on_one_trunk(ScreenConfig(**shared, study=wanted), "")
    return folder


@pytest.fixture
def study(screened: Path, tmp_path: Path) -> Iterator[ScreenConfig]:
    """A copy of a study in which the outcomes can be changed."""
    shutil.copytree(screened, tmp_path / "study")
    config = read_study(tmp_path / "study")
    assert isinstance(config, ScreenConfig)
    yield config


def change(config: ScreenConfig, name: str, **arrays: dict[str, Any]) -> None:
    """Change the outcomes of a set, by the name of the run."""
    for run, new in arrays.items():
        place = Path(config.output_dir, "runs", run.replace("_", "-"))
        path = place / "outcomes" / place.name / f"{name}.npz"
        with np.load(path) as file:
            content = {key: file[key] for key in file.files}
        np.savez(path, **(content | new))


def positions(*right: int) -> dict[str, Any]:
    found = np.full(16, 2, np.int32)
    found[list(right)] = 1
    return {"position": found, "predicted": np.where(found == 1, np.arange(16) % 4, (np.arange(16) + 1) % 4)}


def opened(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_images_that_all_seeds_of_one_arm_alone_get_right(study: ScreenConfig) -> None:
    change(
        study, "colours",
        avg_3=positions(0, 1, 2), avg_5=positions(2, 3), ggem_3=positions(2, 5, 6, 7), ggem_5=positions(5, 7, 9),
    )  # fmt: skip
    first, second = study_pictures(study, finished_runs(study))[:2]
    assert first["title"] == "Right with ggem, wrong with avg in all 2 seeds: 2 of 16 images of colours"
    assert (first["a"], first["b"], first["kind"]) == ("ggem", "avg", "classification")
    assert [item["caption"] for item in first["items"]] == ["green", "yellow"]
    assert first["items"][0]["answers"] == {"ggem": "green", "avg": "blue"}
    for item in first["items"]:
        shots = [item["image"], *item["maps"].values()]
        assert list(item["maps"]) == ["ggem", "avg"]
        assert [max(opened(uri).size) for uri in shots] == [160] * 3
        assert all(len(uri) < 12_000 for uri in shots)
    assert second["title"] == "Right with avg, wrong with ggem in all 2 seeds: none of 16 images of colours"
    assert second["items"] == []


def test_texts_that_all_seeds_of_one_arm_alone_find(study: ScreenConfig) -> None:
    hits = {right: np.array([[row in right] * 3 for row in range(32)]) for right in ((4, 9), (9,), ())}
    ranks = {"image_position": np.arange(1, 33, dtype=np.int32)}
    change(
        study, "pairs",
        avg_3={"image_hits": hits[4, 9]}, avg_5={"image_hits": hits[9,]},
        ggem_3={"image_hits": hits[()], **ranks}, ggem_5={"image_hits": hits[()]},
    )  # fmt: skip
    group = study_pictures(study, finished_runs(study))[3]
    assert group["title"] == "Found first by avg, not by ggem in all 2 seeds: 1 of 32 texts of pairs"
    (item,) = group["items"]
    assert item["query"] == "picture 204 of something red"  # each image has two texts
    assert item["right"]["ggem"] == 9
    assert [len(item["tops"][pool]) for pool in ("avg", "ggem")] == [3, 3]
    assert max(opened(item["tops"]["avg"][0]).size) == 96


def test_many_are_drawn_at_random_within_the_budget(study: ScreenConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    none, all_of_them = positions(), positions(*range(16))
    change(study, "colours", avg_3=none, avg_5=none, ggem_3=all_of_them, ggem_5=all_of_them)
    runs = finished_runs(study)
    first = study_pictures(study, runs)[0]
    assert first["title"].endswith(": 16 of 16 images of colours, 8 of them drawn at random")
    assert study_pictures(study, runs)[0] == first
    monkeypatch.setattr(pictures, "BUDGET", 24)
    assert len(study_pictures(study, runs)[0]["items"]) == 2


def test_the_report_has_them(study: ScreenConfig, screened: Path) -> None:
    assert json.loads((screened / "results.json").read_text())["pictures"]  # screening writes them by itself
    change(study, "colours", avg_3=positions(), avg_5=positions(), ggem_3=positions(1), ggem_5=positions(1))
    write_pictures(study, finished_runs(study))
    results = collect(study, "")
    assert "pictures" in results and results["pictures"][0]["items"][0]["caption"] == "green"
    write_study(Path(study.output_dir), results)
    page = (Path(study.output_dir) / "report.html").read_text()
    assert results["pictures"][0]["title"] in page and results["pictures"][0]["items"][0]["image"] in page
    (Path(study.output_dir) / "pictures.json").write_text("{")
    assert "pictures" not in collect(study, "")


def test_a_study_is_not_lost_for_want_of_pictures(study: ScreenConfig, caplog: pytest.LogCaptureFixture) -> None:
    place = Path(study.output_dir) / "pictures.json"
    place.unlink()
    change(study, "colours", avg_5={"keys": np.array([f"other{i}" for i in range(16)])})
    write_pictures(study, finished_runs(study))
    assert "set colours has other samples now than when avg seed 5 was evaluated" in caplog.text
    assert not place.exists()
    without = dataclasses.replace(study, study=dataclasses.replace(study.study, diagnostics=DiagnosticsConfig(0)))
    write_pictures(without, finished_runs(study))
    assert not place.exists()


def test_without_models_there_are_answers_alone(study: ScreenConfig) -> None:
    for place in Path(study.output_dir).glob("runs/*/final"):
        shutil.rmtree(place)
    change(study, "colours", avg_3=positions(), avg_5=positions(), ggem_3=positions(1), ggem_5=positions(1))
    (item,) = study_pictures(study, finished_runs(study))[0]["items"]
    assert (item["answers"]["ggem"], item["maps"]) == ("green", {})
