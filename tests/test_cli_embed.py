"""`mmrep embed`: files that other tools open, whole or not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import png

from mmrep.cli import main
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.embedding.embed import embed_set
from mmrep.evaluation.sets import open_set
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import load, save_model


@pytest.fixture(scope="module")
def saved(tiny: Callable[..., DualEncoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_model(tiny("avg", seed=1), root / "avg")
    save_model(tiny("ggem", seed=2), root / "ggem")
    return root


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_images_and_captions_of_several_models(saved: Path, colour_set: Path, tmp_path: Path) -> None:
    out, pairs = tmp_path / "out", str(colour_set / "retrieval")
    models = ["--model", str(saved / "avg"), str(saved / "ggem")]
    assert main(["embed", *models, "--data", str(colour_set), pairs, "--output_dir", str(out)]) == 0
    evalset = open_set(SetConfig(str(colour_set)))
    for name in ("avg", "ggem"):
        folder = out / name / colour_set.name
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        (expected,) = embed_set([load(saved / name)], evalset.records, EvaluationConfig())
        np.testing.assert_array_equal(images, expected.numpy())
        assert [row["key"] for row in lines(folder / "images.jsonl")] == evalset.keys()
        assert [row["label"] for row in lines(folder / "images.jsonl")] == [0, 1, 2, 3] * 4
        meta = json.loads((folder / "meta.json").read_text())
        about = {key: meta[key] for key in ("images", "texts", "dim", "format", "dtype", "normalised")}
        assert about == {"images": 16, "texts": 0, "dim": 16, "format": "npy", "dtype": "float32", "normalised": True}
        assert meta["view"] == "Centre(rows=16, columns=16, resize_mode='shortest', interpolation='bicubic')"
        assert meta["model"]["source"] == str(saved / name) and meta["dataset"]["digest"] == evalset.records.digest()
        texts = np.load(out / name / "retrieval" / "texts.npy")
        assert texts.shape == (32, 16) and texts.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
        ids = lines(out / name / "retrieval" / "texts.jsonl")
        assert [row["image"] for row in ids] == [i // 2 for i in range(32)]
        captions = lines(out / name / "retrieval" / "images.jsonl")[3]["captions"]
        assert captions == [row["text"] for row in ids[6:8]] and len(captions) == 2
    assert not list(out.rglob("*.part"))


def test_captions_of_pairs_and_each_set_once(saved: Path, colour_set: Path, tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.png").write_bytes(png((len(name), 40, 90)))
    entries = [
        {"filename": "b.png", "caption": "right one", "negative_caption": ["wrong", "worse"]},
        {"filename": "a.png", "caption": "another", "negative_caption": "right one"},
    ]
    (tmp_path / "kinds.json").write_text(json.dumps(entries))
    pairs = {"path": str(tmp_path / "kinds.json"), "name": "kinds", "task": "pairs", "images": str(tmp_path)}
    colours = {"path": str(colour_set), "name": "colours"}
    for name, options in (("one", {"instance": {"rerank": True}}), ("two", {"knn": {"k": [1]}})):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"sets": [colours, pairs], **options}))
    suites = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    out = tmp_path / "out"
    assert main(["embed", "--model", str(saved / "avg"), "--suite", *suites, "--output_dir", str(out)]) == 0
    assert sorted(path.name for path in (out / "avg").iterdir()) == ["colours", "kinds"]
    ids = lines(out / "avg/kinds/texts.jsonl")
    assert [(row["text"], row["image"], row["right"]) for row in ids] == [
        ("right one", 0, True), ("wrong", 0, False), ("worse", 0, False), ("another", 1, True), ("right one", 1, False),
    ]  # fmt: skip
    rows = np.load(out / "avg/kinds/texts.npy")
    assert rows.shape == (5, 16) and (rows[0] == rows[4]).all() and (rows[0] != rows[1]).any()
    assert lines(out / "avg/kinds/images.jsonl")[1]["captions"] == ["another", "right one"]


def test_texts_in_half_precision(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("a red square\nsomething blüe\na red square\n", encoding="utf-8")
    command = ["embed", "--model", str(saved / "avg"), "--texts", str(tmp_path / "queries.txt"), "--dtype", "float16"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out/avg/queries"
    found = np.load(folder / "texts.npy")
    assert found.dtype == np.float16 and (found[0] == found[2]).all() and (found[0] != found[1]).any()
    assert [row["text"] for row in lines(folder / "texts.jsonl")][1] == "something blüe"
    model = load(saved / "avg")
    with torch.inference_mode():
        expected = model.encode_text(model.tokenizer.batch(["something blüe"])[0])
    np.testing.assert_allclose(found[1], expected[0].numpy(), atol=1e-3)


def test_texts_that_are_cut_are_counted_by_model(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "queries.txt").write_text("a red square\n" + "red " * 40 + "\n")
    models = ["--model", str(saved / "avg"), str(saved / "ggem")]
    options = ["--texts", str(tmp_path / "queries.txt"), "--output_dir", str(tmp_path / "out")]
    assert main(["embed", *models, *options]) == 0
    logged = capsys.readouterr().err
    for name in ("avg", "ggem"):
        assert f"queries: 1 of 2 texts are longer than the 16 tokens of the context of {name} and are cut" in logged


def test_parquet(saved: Path, colour_set: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    command = ["embed", "--model", str(saved / "avg"), "--data", str(colour_set / "retrieval")]
    for form in ("parquet", "npy"):
        assert main([*command, "--format", form, "--output_dir", str(tmp_path / form)]) == 0
    place = Path("avg/retrieval")
    for name, key in (("images", "captions"), ("texts", "text")):
        table = parquet.read_table(tmp_path / "parquet" / place / f"{name}.parquet")
        found = np.array(table["embedding"].to_pylist(), dtype=np.float32)
        np.testing.assert_array_equal(found, np.load(tmp_path / "npy" / place / f"{name}.npy"))
        assert table[key].to_pylist() == [row[key] for row in lines(tmp_path / "npy" / place / f"{name}.jsonl")]


def test_parquet_without_pyarrow(
    saved: Path, colour_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ["embed", "--model", str(saved / "avg"), "--data", str(colour_set), "--format", "parquet"]
    assert main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert "--format parquet needs pyarrow: pip install 'mmrep[parquet]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ctrl_c_leaves_no_half_folder(
    saved: Path, colour_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mmrep.evaluation.embedding.written._write_meta", stopped)
    command = ["embed", "--model", str(saved / "avg"), "--data", str(colour_set), "--output_dir", str(tmp_path)]
    assert main(command) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert capsys.readouterr().err == "mmrep embed: error: interrupted\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data {set} --output_dir {model}", "--output_dir {model}: expected a new folder or an empty one"),
        ("--output_dir {new}", "nothing to embed: give --data DIR, --suite FILE or --texts FILE"),
        ("--data {set} --format h5 --output_dir {new}", "format: unknown value 'h5' (valid: npy, parquet)"),
        ("--data {set} --dtype int8 --output_dir {new}", "dtype: unknown value 'int8' (valid: float32, float16)"),
        ("--texts {new} --output_dir {new}", "--texts: can't read {new}"),
        ("--texts {text} {text} --output_dir {new}", "--texts: two files of one name"),
        ("--texts {text} --texts {text} --output_dir {new}", "--texts: two files of one name"),
        ("--data {set}/none --output_dir {new}", "no such folder"),
    ],
)
def test_wrong_use(
    options: str, message: str, saved: Path, colour_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.txt").write_text("a\n")
    places = {"model": saved / "avg", "set": colour_set, "new": tmp_path / "new", "text": tmp_path / "t.txt"}
    words = [word.format(**places) for word in options.split()]
    assert main(["embed", "--model", str(saved / "avg"), *words]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and message.format(**places) in err and not out
    assert not (tmp_path / "new").exists()


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", "--help"]) == 0
    assert "--dtype" in capsys.readouterr().out
