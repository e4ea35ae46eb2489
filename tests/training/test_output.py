"""Which verb may write to which folder, and the files that are there as a whole or not at all."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mmrep.cli import main
from mmrep.cli.train import invocation
from mmrep.config.tree import TrainConfig
from mmrep.evaluation.metrics import number, shown
from mmrep.files import DamagedFile, WriteError, read_json, read_json_lines, whole_file, whole_folder, write_errors
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import save_model
from mmrep.training.resume import plain
from mmrep.training.tracking import Tracker

Recipe = Callable[..., TrainConfig]


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a user reads whose command is refused: one line."""
    capsys.readouterr()
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> Path:
    """A study's recipe without a place to write to."""
    parts = {"training": {"steps": 1, "checkpoint_steps": 0}, "optim": {"warmup": 0}, "data": {"workers": 0}}
    content = plain(recipe(evaluation={"sets": []}, **parts).to_dict())
    del content["output_dir"]
    content["study"] = {"pools": ["avg", "max"], "seeds": [0]}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "small.yaml"


def test_a_run_and_a_study_of_one_config_lie_apart(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = ["--config", str(recipe_file)]
    assert main(["train", *config]) == 0
    assert main(["compare", *config]) == 0
    assert (tmp_path / "runs" / "small" / "summary.json").is_file()
    assert (tmp_path / "studies" / "small" / "results.json").is_file()
    into = ["--output_dir", "studies/small"]
    assert "output_dir studies/small: holds a study, not a run: choose" in refused(["train", *config, *into], capsys)
    into = ["--output_dir", "runs/small"]
    assert "output_dir runs/small: holds a run, not a study: choose" in refused(["compare", *config, *into], capsys)
    # What is damaged of a study is written anew.
    before = json.loads((tmp_path / "studies/small/results.json").read_text())
    for name in ("study.yaml", "results.json", "runs/avg-0/config.yaml", "runs/avg-0/summary.json"):
        (tmp_path / "studies" / "small" / name).write_text("")
    assert main(["compare", *config]) == 0
    after = json.loads((tmp_path / "studies/small/results.json").read_text())
    assert [run["metrics"] for run in after["runs"]] == [run["metrics"] for run in before["runs"]]
    assert yaml.safe_load((tmp_path / "studies/small/study.yaml").read_text())["study"]["pools"] == ["avg", "max"]


def test_an_evaluation_loses_no_other(
    tiny: Callable[..., DualEncoder], colour_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("avg", "max"):
        save_model(tiny(name), tmp_path / "models" / name / "final")
    pairs, options = str(colour_set / "retrieval"), ["--workers", "0", "--no_cache"]

    def command(model: str, data: str, *more: str) -> list[str]:
        return ["eval", "--model", f"models/{model}", "--data", data, *options, *more]

    for model in ("avg", "max", "avg"):
        assert main(command(model, str(colour_set))) == 0
        assert main(command(model, pairs)) == 0
    found = sorted(str(place) for place in Path("results").rglob("results.json"))
    sets = (colour_set.name, "retrieval")
    assert found == sorted(f"results/{model}/{name}/results.json" for model in ("avg", "max") for name in sets)
    into = ["--output_dir", f"results/avg/{colour_set.name}"]
    said = refused(command("max", str(colour_set), *into), capsys)
    assert f"--output_dir results/avg/{colour_set.name}/results.json: holds results of model models/avg, which" in said
    assert f"holds results of set {colour_set.name}, which" in refused(command("avg", pairs, *into), capsys)
    assert "holds results of task zeroshot of set" in refused(
        command("avg", str(colour_set), "--task", "knn", *into), capsys
    )
    assert "holds results of model avg in fp32, which" in refused(command("avg", pairs, "--precision", "bf16"), capsys)
    shutil.copytree(colour_set / "retrieval" / "test", tmp_path / "two" / "test")
    shutil.copytree(colour_set / "retrieval" / "test", tmp_path / "two" / "dev")
    (tmp_path / "two" / "dataset_type.txt").write_text("retrieval\n")
    assert main(command("avg", "two")) == 0
    said = refused(command("avg", "two", "--split", "dev"), capsys)
    assert "holds results of set two from two, split test, which" in said
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    assert "run: holds a run, not an evaluation" in refused(command("avg", pairs, "--output_dir", "run"), capsys)
    place = tmp_path / "results" / "avg" / "retrieval" / "results.json"
    place.write_text('{"schema": 1, "resu')
    assert main(command("avg", pairs)) == 0
    assert "results.json: cut off or damaged, not JSON; it is written anew" in capsys.readouterr().err
    assert json.loads(place.read_text())["results"]


def test_the_command_to_go_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mmrep"])
    for given in (["--resume", "runs/x/checkpoints/step_00000004"], ["--resume=none"], []):
        argv = ["--config", "a.yaml", *given, "--seed", "1"]
        expected = "mmrep train --config a.yaml --seed 1 --resume auto"
        assert invocation("train", argv, resume=True) == expected


def test_figures_have_their_own_unit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert shown("pairs/image_retrieval_median_rank", 39.0) == "39.0"
    assert shown("pairs/image_retrieval_recall@1", 0.125) == "12.50%"
    assert (number("acc1", 0.5), number("text_retrieval_mean_rank", 2.25)) == ("50.00", "2.2")
    caplog.set_level(logging.INFO)
    tracker = Tracker(tmp_path, 0, 8, 8, 64, True, "train")
    tracker.evaluation(4, {"pairs/image_retrieval_recall@1": 0.125, "pairs/image_retrieval_median_rank": 39.0})
    tracker.close()
    assert caplog.messages[-1] == (
        "train: step 4: pairs/image_retrieval_recall@1 12.5%  pairs/image_retrieval_median_rank 39.0"
    )


def test_a_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b.json"
    with whole_file(place) as part:
        part.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(place) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert place.read_text() == "old" and names(place.parent) == ["b.json"]
    with whole_folder(tmp_path / "f") as folder:
        (folder / "x").write_text("old")
    with (
        pytest.raises(WriteError, match=r"f: can't be written: 'said so'"),
        whole_folder(tmp_path / "f", KeyError) as to,
    ):
        (to / "x").write_text("ne")
        raise KeyError("said so")
    assert (tmp_path / "f" / "x").read_text() == "old"
    with whole_folder(tmp_path / "f") as folder:
        (folder / "y").write_text("new")
    assert names(tmp_path / "f") == ["y"] and names(tmp_path) == ["a", "f"]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(28, "No space left on device"), "; free some space, then run the same command again"),
        (KeyError("I/O error: No space left on device (os error 28)"), "; free some space, then run the same .*"),
        (OSError(30, "Read-only file system"), "; make the folder writable, or choose another one"),
        (OSError(5, "Input/output error"), ""),
    ],
)
def test_an_error_of_writing_says_what_to_do(error: Exception, advice: str) -> None:
    with (
        pytest.raises(WriteError, match=rf"^there: can't be written: [^;]*{advice}$"),
        write_errors(Path("there"), KeyError),
    ):
        raise error


def test_damaged_json_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_json(place)
    for content, said in ((b"", "empty"), (b'{"a": 1', "cut off"), (b"[1]", "got list"), (b"\xff", "not JSON")):
        place.write_bytes(content)
        with pytest.raises(DamagedFile, match=f"^{place}: .*{said}"):
            read_json(place)
    place.write_bytes(b'{"a": 1}\n[]\n\xff\n{"a": 2}\n{"a": 3')
    assert read_json_lines(place) == [{"a": 1}, {"a": 2}]
    assert "2 damaged lines are left out" in caplog.text
