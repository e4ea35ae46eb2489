"""Searching with the heads of a study, the page that shows it, and what is said where there is nothing to search."""

import dataclasses
import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image
from recipes import make_recipe

from mmrep.cli import main
from mmrep.cli.explore_page import described_html, found_html, safe
from mmrep.config.checks import ConfigError
from mmrep.config.study import DiagnosticsConfig, StudyConfig
from mmrep.config.tree import ScreenConfig, TrainConfig
from mmrep.evaluation.tasks.zeroshot import embed_classes
from mmrep.files import read_json
from mmrep.study.explore import Description, Explorer, Hit, open_study
from mmrep.study.runner import compare_on_one_trunk


@pytest.fixture(scope="module")
def study(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("screened") / "study"
    config = make_recipe(colour_set, folder, training={"steps": 2}, evaluation={"workers": 0})
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    wanted = StudyConfig(pools=["avg", "ggem"], seeds=[3], diagnostics=DiagnosticsConfig(0))
    compare_on_one_trunk(ScreenConfig(**shared, study=wanted), "")
    return folder


@pytest.fixture(scope="module")
def classes(study: Path) -> Explorer:
    return open_study(study)


@pytest.fixture(scope="module")
def captions(study: Path) -> Explorer:
    return open_study(study, "pairs")


def recorded(study: Path, name: str) -> dict[str, float]:
    """The value of a metric in the results of the study, by arm."""
    return {run["pool"]: run["metrics"][name] for run in read_json(study / "results.json")["runs"]}


@pytest.mark.long
def test_the_first_image_is_the_one_that_evaluation_ranks_first(study: Path, captions: Explorer) -> None:
    assert (captions.name, captions.seed, list(captions.models)) == ("pairs", 3, ["avg", "ggem"])
    own = captions.context.texts
    right = dict.fromkeys(captions.models, 0)
    for texts in own:
        for text in texts:
            for label, hits in captions.find(text, 1).items():
                right[label] += hits[0].text == texts[0]
    expected = recorded(study, "pairs/image_retrieval_recall@1")
    assert {label: count / 32 for label, count in right.items()} == expected


def test_the_first_class_is_the_one_that_evaluation_predicts(study: Path, classes: Explorer) -> None:
    assert classes.texts == ["red", "green", "blue", "yellow"]
    records, right = classes.context.evalset.records, dict.fromkeys(classes.models, 0)
    names = {
        label: images @ embed_classes(model, classes.context.evalset, 8).T
        for (label, model), images in zip(classes.models.items(), classes.context.images, strict=True)
    }
    for row in range(len(records)):
        picture = Image.fromarray(records.image(row).permute(1, 2, 0).numpy())
        for label, each in classes.describe(picture, 2).items():
            expected = names[label][row].topk(2).values.tolist()
            assert [score for _, score in each.answers] == pytest.approx(expected, abs=1e-5)
            right[label] += each.answers[0][0] == classes.texts[records.label(row)]
    assert {label: count / 16 for label, count in right.items()} == recorded(study, "colours/acc1")


def test_hits_come_with_pictures_and_heat_maps(classes: Explorer) -> None:
    found = classes.find("something red", 40)
    for hits in found.values():
        assert len(hits) == 16
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(hit.map is not None and hit.map.size == hit.picture.size == (160, 160) for hit in hits)


def test_what_can_not_be_searched_for(classes: Explorer) -> None:
    with pytest.raises(ConfigError, match="type a text to search for"):
        classes.find(" \n")
    with pytest.raises(ConfigError, match="drop in a picture"):
        classes.describe(None)
    with pytest.raises(ConfigError, match="the picture can't be read: float pixels"):
        classes.describe(Image.new("F", (8, 8)))


def test_nothing_in_a_text_is_markup() -> None:
    evil, picture = '<img src=x onerror="x()">${x}', Image.new("RGB", (4, 4))
    for page in (
        found_html({evil: [Hit(evil, 0.5, picture, picture)]}),
        described_html({evil: Description([(evil, 0.5)], picture)}),
    ):
        assert "<img src=x" not in page and "${" not in page
        assert page.count(safe(evil)) >= 3


def asked(port: int, what: str, *data: Any) -> str:
    """Ask the page's server, as its own script does, and return the answer, a JSON list."""
    url = f"http://127.0.0.1:{port}/gradio_api/call/{what}"
    request = Request(url, json.dumps({"data": data}).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{url}/{event}") as answer:
        return answer.read().decode()


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="Gradio is not installed")
def test_the_page_answers_until_it_is_ended(study: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "mmrep", "explore", str(study), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        try:
            assert page.stdout.readline() == f"search with avg, ggem at http://127.0.0.1:{port}/ (Ctrl-C ends)\n"
            assert asked(port, "find", "red", 3).count("<figure>") == 6
            assert "event: error" in asked(port, "find", " ", 3)
        finally:
            page.terminate()
        assert page.stdout.read() == "ended\n"
    assert page.returncode == 0


def cases(study: Path, tmp_path: Path) -> list[tuple[list[Any], str]]:
    """Wrong commands, and what their messages begin with."""
    (tmp_path / "empty").mkdir()
    shutil.copytree(study, tmp_path / "started")
    for place in (tmp_path / "started").glob("runs/*/summary.json"):
        place.unlink()
    return [
        ([tmp_path / "nope"], f"{tmp_path}/nope: no such folder"),
        ([tmp_path / "empty"], f"{tmp_path}/empty: no study with runs in it"),
        ([tmp_path / "started"], f"{tmp_path}/started: no run of this study is finished yet, or its model is gone"),
        ([study, "--set", "pair"], "--set: unknown value 'pair'; did you mean 'pairs'? (valid: colours, pairs)"),
        ([study, "--port", "0"], "--port: expected"),
    ]


def test_wrong_use_is_one_line(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "gradio" or real(name, *rest))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        wrong = cases(study, tmp_path)
        wrong.append(([study, "--port", port], f"--port {port}: can't be used: Address already in use"))
        for words, message in wrong:
            assert main(["explore", *map(str, words)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"mmrep explore: error: {message}"), line


def test_without_gradio_the_extra_is_named(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert main(["explore", str(study)]) == 2
    assert capsys.readouterr().err == "mmrep explore: error: the page needs Gradio: pip install 'mmrep[demo]'\n"
