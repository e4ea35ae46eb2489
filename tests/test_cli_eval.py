"""`mmrep eval`: suites, what is written and when, what is printed; one process and two."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmrep.cli import main
from mmrep.evaluation import suite
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import save_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def saved(tiny: Callable[..., DualEncoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_model(tiny("avg", seed=1), root / "avg")
    save_model(tiny("ggem", seed=2), root / "ggem")
    return root


@pytest.fixture
def command(saved: Path, colour_set: Path, tmp_path: Path) -> list[str]:
    """Two models on two suites, that share a set."""
    parts: dict[str, Any] = {
        "one": {"sets": [{"path": str(colour_set), "name": "colours"}], "batch_size": 7},
        "two": {
            "sets": [{"path": f"{colour_set}/retrieval"}, {"path": str(colour_set), "name": "colours"}],
            "batch_size": 7,
        },
    }
    for name, content in parts.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    suites = [str(tmp_path / f"{name}.yaml") for name in parts]
    return ["eval", "--model", str(saved / "avg"), "--model", str(saved / "ggem"), "--suite", *suites]


def rows(path: Path) -> list[tuple[str, str]]:
    return [(row["dataset"], row["model"]) for row in json.loads(path.read_text())["results"]]


BOTH = [(name, model) for name in ("colours", "retrieval") for model in ("avg", "ggem")]


def test_many_models_on_many_suites(
    command: list[str], saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*command, "--output_dir", str(out), "--no_cache", "--workers", "0"]) == 0
    shown, logged = capsys.readouterr()
    assert rows(out / "results.json") == BOTH
    content = json.loads((out / "results.json").read_text())
    assert content["schema"] == 1 and {"mmrep", "torch", "timm"} <= set(content["versions"])
    assert content["models"]["avg"]["source"] == str(saved / "avg")
    digests = {each["digest"] for each in content["models"].values()}
    assert len(digests) == 2
    assert {name: each["n"] for name, each in content["datasets"].items()} == {"colours": 16, "retrieval": 16}
    assert all(each["digest"] and each["seconds"] > 0 for each in content["datasets"].values())
    assert content["outcomes"] == [f"outcomes/{model}/{name}.npz" for name, model in BOTH]
    assert all((out / file).is_file() for file in content["outcomes"])
    lines = shown.splitlines()
    assert lines[0] == "colours: zeroshot, 16 samples" and lines[3].split()[:2] == ["acc1", "25.00"]
    assert lines[-1] == f"written: {out / 'results.json'}"
    assert [line.split(":")[0] for line in logged.splitlines() if "16 images" in line] == ["colours", "retrieval"]


def test_cache_and_precision(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "again", "bf16"):
        if name == "again":
            monkeypatch.setattr(
                "mmrep.evaluation.embedding.cache.embed_set", lambda *args: pytest.fail("decoded again")
            )
        if name == "bf16":
            monkeypatch.undo()
        options = ["--precision", "bf16"] if name == "bf16" else []
        assert main([*command, *options, "--output_dir", str(tmp_path / name)]) == 0
    first, again, bf16 = (
        json.loads((tmp_path / f"{name}/results.json").read_text()) for name in ("first", "again", "bf16")
    )
    assert first["results"] == again["results"]
    assert [content["models"]["avg"]["precision"] for content in (first, bf16)] == ["fp32", "bf16"]


@pytest.mark.parametrize("kind", ["ctrl-c", "error"])
def test_what_is_done_is_written(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    def stopped(*args: object) -> Any:
        raise KeyboardInterrupt if kind == "ctrl-c" else OSError(28, "No space left on device")

    monkeypatch.setitem(suite.TASK_FUNCTIONS, "retrieval", stopped)
    out = tmp_path / "out"
    assert main([*command, "--output_dir", str(out)]) == (75 if kind == "ctrl-c" else 1)
    assert rows(out / "results.json") == BOTH[:2]
    last = capsys.readouterr().err.splitlines()[-1]
    expected = f"mmrep eval: interrupted: {out}/results.json has 1 of 2 sets"
    assert last.startswith(expected) if kind == "ctrl-c" else "No space left" in last


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--precision fp16", "precision: unknown value 'fp16'"),
        ("--task zero", "task: unknown value 'zero'"),
        ("--task zeroshot,knm", "task: unknown value 'knm'; did you mean 'knn'?"),
        ("--data_format zip", "data_format: unknown value 'zip'"),
        ("--split val", "no split 'val'"),
        ("--suite {tmp}/none.yaml", "error: --suite: no such file: "),
        ("--data_format karpathy", "data_format: unknown value 'karpathy' (valid: webdataset, folder)"),
        ("--data {tmp}/file.json", "file.json: is a file: list it in a suite (--suite) with its `format`"),
        ("--data {tmp}/classes", "classes: no test/nshards.txt, so not in CLIP_benchmark's layout; a folder of class"),
        ("--output_dir {tmp}/file.json", "--output_dir {tmp}/file.json: can't write there: File exists"),
        ("--output_dir /proc/none", "--output_dir /proc/none: can't write there: No such file"),
        ("--output {tmp}/file.json/results.json", "--output {tmp}/file.json: can't write there: File exists"),
        ("--batch_size 0", "evaluation.batch_size: expected a value ≥ 1, got 0"),
    ],
)
def test_wrong_use(
    options: str, message: str, saved: Path, colour_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("mmrep.model.load.load", lambda *args, **kwargs: pytest.fail("a model was loaded"))
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "classes/cat").mkdir(parents=True)
    command = ["eval", "--model", str(saved / "avg"), "--data", str(colour_set), *options.format(tmp=tmp_path).split()]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message.format(tmp=tmp_path) in err


def test_suites_keep_their_options(saved: Path, colour_set: Path, tmp_path: Path) -> None:
    kinds = {"one": {"shares": [0.5], "seed": 3}, "two": {"shares": [0.25, 0.5, 0.75], "seed": 0}}  # two: the defaults
    for name, options in kinds.items():
        evalset = {"path": str(colour_set), "name": "colours", "task": "occlusion"}
        content = {"sets": [evalset], "occlusion": options}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    suites, out = [str(tmp_path / f"{name}.yaml") for name in kinds], tmp_path / "out"
    assert main(["eval", "--model", str(saved / "avg"), "--suite", *suites, "--output_dir", str(out)]) == 0
    one, two = json.loads((out / "results.json").read_text())["results"]
    assert (one["dataset"], two["dataset"]) == ("colours@one", "colours@two")
    assert len(one["metrics"]) < len(two["metrics"])
    again = ["eval", "--model", str(saved / "avg"), "--suite", suites[1], "--output_dir", str(tmp_path / "alone")]
    assert main(again) == 0
    (alone,) = json.loads((tmp_path / "alone/results.json").read_text())["results"]
    assert alone["metrics"] == two["metrics"]


def test_speed_on_the_command_line_makes_suites_one(command: list[str], saved: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text((tmp_path / "two.yaml").read_text().replace("batch_size: 7", "batch_size: 5"))
    assert main([*command, "--batch_size", "6", "--workers", "0", "--output_dir", str(tmp_path / "out")]) == 0
    assert rows(tmp_path / "out/results.json") == BOTH


@pytest.mark.long
def test_two_processes_and_sharded_models_find_what_one_finds(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--no_cache", "--output_dir", str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    done = subprocess.run(
        [*launcher, "--rdzv_endpoint", "localhost:0", "-m", "mmrep", *command, "--no_cache", "--device", "cpu",
         "--output_dir", str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, cwd=ROOT,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / f"{name}/results.json").read_text()) for name in ("one", "two"))
    assert two["models"] == one["models"]
    for a, b in zip(one["results"], two["results"], strict=True):
        assert {**a, "metrics": pytest.approx(a["metrics"], abs=1e-6)} == b
    assert done.stdout.count("written:") == 1
