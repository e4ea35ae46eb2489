"""Joined outcomes of two models: who is right, how sure that is, what is written, and what can't be joined."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from mmrep.cli import main
from mmrep.config.checks import ConfigError
from mmrep.evaluation.suite import evaluate
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import load, save_model
from mmrep.study.diff import class_rows, join, mcnemar, table, tally
from mmrep.study.shots import chosen

NAMES = ["x", "y"]


def classified(predicted: Sequence[int], labels: Sequence[int] = (0, 0, 1, 1, 2)) -> dict[str, Any]:
    right, truth = np.array(predicted), np.array(labels)
    keys = np.array([f"k{i}" for i in range(len(truth))])
    return {"keys": keys, "label": truth, "predicted": right, "position": np.where(right == truth, 1, 2)}


def test_queries_are_counted_by_who_is_right() -> None:
    (joined,) = join("s", classified([0, 0, 1, 0, 0]), classified([0, 1, 2, 1, 0]), ["a", "b"])
    assert tally(joined)[:4] == (1, 2, 1, 1)
    assert [joined.only(i).tolist() for i in (0, 1)] == [[1, 2], [3]]
    assert joined.answers == (["a", "a", "b", "a", "a"], ["a", "b", "2", "b", "a"])
    assert [(row.name, row.only_a, row.only_b) for row in class_rows(joined)] == [
        ("a", 1, 0), ("b", 1, 1), ("2", 0, 0)
    ]  # fmt: skip
    text = table(joined, NAMES)
    assert "right: x 60.00%, y 40.00%; difference +20.00 points; McNemar's exact p = 1.0000" in text


@pytest.mark.parametrize("counts", [(0, 0), (3, 9), (9, 3), (5, 5), (0, 12), (400, 320)])
def test_p_is_that_of_a_binomial_test(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1
    assert mcnemar(*counts) == pytest.approx(expected)


def test_several_texts_of_an_image_have_no_p() -> None:
    hits = np.array([[True], [False]])
    outcomes = {
        "keys": np.array(["k"]), "image_of_text": np.array([0, 0]), "image_hits": hits, "text_hits": hits[:1],
        "image_position": np.array([1, 7]), "text_position": np.array([1]),
    }  # fmt: skip
    by_text, by_image = join("s", outcomes, outcomes)
    assert (tally(by_text).p, tally(by_image).p) == (None, 1.0)
    assert by_text.answers[0] == ["rank 1", "rank 7"]
    assert "no p, since several texts" in table(by_text, NAMES)


def test_outcomes_of_other_samples_are_not_joined() -> None:
    wrong = [classified([0, 0, 1, 1], [0, 0, 1, 1]), classified([0] * 5, [0, 0, 1, 1, 0])]
    for other in wrong:
        with pytest.raises(ConfigError, match="set s: the two models were evaluated on other samples"):
            join("s", classified([0] * 5), other)


def test_the_chosen_rows_are_always_the_same() -> None:
    assert chosen(range(100, 200), 8) == chosen(range(100, 200), 8) == sorted(chosen(range(100, 200), 8))
    assert chosen([5, 3], 8) == [5, 3]


@pytest.fixture(scope="module")
def models(tiny: Callable[..., DualEncoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_model(tiny("avg", seed=1), root / "avg")
    save_model(tiny("ggem", seed=2), root / "ggem")
    return root


def test_two_models_on_two_sets(
    models: Path, colour_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmrep.config.evaluation import EvaluationConfig, SetConfig
    from mmrep.evaluation.sets import open_set

    out = tmp_path / "out"
    command = ["diff", str(models / "avg"), str(models / "ggem"), "--data", str(colour_set), f"{colour_set}/retrieval"]
    command += ["--output_dir", str(out), "--workers", "0"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "These two checkpoints only" in shown
    sets = [open_set(SetConfig(str(colour_set))), open_set(SetConfig(f"{colour_set}/retrieval"))]
    found = evaluate({n: load(models / n) for n in ("avg", "ggem")}, sets, EvaluationConfig(workers=0))
    expected = {(each.evalset.task, each.model): each.evaluation.metrics for each in found}
    content = json.loads((out / "diff.json").read_text())
    assert [each["way"] for each in content["sets"]] == ["classification", "text_to_image", "image_to_text"]
    metrics = ("zeroshot", "acc1"), ("retrieval", "image_retrieval_recall@1"), ("retrieval", "text_retrieval_recall@1")
    for each, (task, metric) in zip(content["sets"], metrics, strict=True):
        assert (each["right_a"], each["right_b"]) == (expected[task, "avg"][metric], expected[task, "ggem"][metric])
        assert each["both"] + each["only_a"] + each["only_b"] + each["neither"] == each["n"]
    rows = list(csv.DictReader((out / "retrieval.text_to_image.csv").read_text().splitlines()))
    assert len(rows) == 32 and rows[0]["label"] == "a red square number 200"
    for row in rows:
        assert (row["avg"] == row["key"]) == (row["right"] in ("both", "avg"))
    with Image.open(next(out.glob("*.png"))) as sheet:
        assert sheet.width > 500
    assert main([*command[:2], str(models), *command[3:]]) == 2
    assert f"holds a diff of {models}/avg and {models}/ggem" in capsys.readouterr().err


def finished(folder: Path, name: str, **sets: Any) -> Path:
    """A finished run's folder with outcomes."""
    place = folder / name / "outcomes" / name
    place.mkdir(parents=True)
    for each, arrays in sets.items():
        np.savez(place / f"{each}.npz", **arrays)
        (place / f"{each}.per_class.csv").write_text("label,class\n0,red\n1,green\n2,blue\n")
    return folder / name


def test_finished_runs_are_joined_without_torch(tmp_path: Path) -> None:
    a = finished(tmp_path, "a-0", s=classified([0, 0, 1, 1, 1]))
    b = finished(tmp_path, "b-0", s=classified([0, 1, 1, 1, 2]))
    (b / "final").mkdir()
    words = ["diff", str(a), str(b / "final"), "--output_dir", str(tmp_path / "out")]
    code = f"import sys; from mmrep.cli import main; main({words!r}); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.endswith("False\n")
    rows = [*csv.reader((tmp_path / "out" / "s.csv").read_text().splitlines())]
    assert rows[0] == ["key", "label", "a-0", "b-0", "right"]
    assert rows[2] == ["k1", "red", "red", "green", "a-0"] and rows[5] == ["k4", "blue", "green", "blue", "b-0"]


def test_what_can_not_be_compared_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = finished(tmp_path, "a-0", s=classified([0, 0, 1, 1, 1]))
    b = finished(tmp_path, "b-0", t=classified([0, 1, 1, 1, 2]))
    c = finished(tmp_path, "c-0", s=classified([0, 1], [0, 1]))
    d = finished(tmp_path, "d-0", s=classified([0, 0, 1, 1, 1]))
    (tmp_path / "empty").mkdir()
    cases: list[tuple[list[Any], str]] = [
        ([a], "expected two models, as in mmrep diff runs/a runs/b, got 1"),
        ([a, a / "../a-0"], f"--model {a}/../a-0: the same model twice"),
        ([a, tmp_path / "nope"], f"{tmp_path}/nope: no such folder"),
        ([a, tmp_path / "empty"], f"{tmp_path}/empty: no outcomes in it"),
        ([a, b], f"no set in common: {a} has outcomes of s, {b} of t: give --data DIR or --suite FILE"),
        ([a, c], "set s: the two models were evaluated on other samples"),
        ([a, d, "--output_dir", a], f"--output_dir {a}: holds an evaluation, not a diff"),
        ([a, b, "--data", tmp_path / "nowhere"], f"evaluation set {tmp_path}/nowhere: no such folder"),
    ]
    for words, message in cases:
        assert main(["diff", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mmrep diff: error: {message}"), line
    place = a / "outcomes/a-0/s.npz"
    place.write_bytes(b"PK")
    assert main(["diff", str(a), str(c)]) == 1
    assert f"{place}: can't be read: " in capsys.readouterr().err
    np.savez(place, label=np.zeros(2))
    assert main(["diff", str(a), str(c)]) == 1
    assert f"{place}: can't be read: no keys of samples in it" in capsys.readouterr().err
