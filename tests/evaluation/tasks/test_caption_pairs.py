"""Confusable captions: scores against CLIP_benchmark's rule written out, and what files may have wrong."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COLOURS, png, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.pairs import read_pairs
from mmrep.evaluation.tasks.pairs import pair_metrics, pairs
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=3, text_batch_size=4, workers=0)
NAMES = list(COLOURS)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("avg", seed=1).eval()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, colour in COLOURS.items():
        (folder / f"{name}.png").write_bytes(png(colour))
    return folder


def crepe(start: int) -> dict[str, dict[str, Any]]:
    return {
        str(i): {
            "filename": f"{NAMES[i % 4]}.png",
            "caption": f"a {NAMES[i % 4]} square {i}",
            "negative_caption": f"a {NAMES[(i + 1) % 4]} square {i}",
        }
        for i in range(start, start + 4)
    }


@pytest.fixture
def sugar(tmp_path: Path, images: Path) -> SetConfig:
    folder = tmp_path / "sugar"
    folder.mkdir()
    (folder / "add_att.json").write_text(json.dumps(crepe(0)))
    (folder / "swap_obj.json").write_text(json.dumps(crepe(4) | {"9": crepe(9)["9"]}))
    return SetConfig(str(folder), task="pairs", images=str(images))


def winoground(images: Path) -> list[dict[str, Any]]:
    return [
        {
            "id": 7 + i,
            "image_0": NAMES[i],
            "image_1": f"{NAMES[i + 1]}.png",
            "caption_0": f"{NAMES[i]} before {NAMES[i + 1]}",
            "caption_1": f"{NAMES[i + 1]} before {NAMES[i]}",
            "collapsed_tag": ["Object", "Relation"][i % 2],
            "num_main_preds": 1,
        }
        for i in range(3)
    ]


def run(model: DualEncoder, config: SetConfig) -> Evaluation:
    evalset = EvalSet("set", "pairs", read_pairs(config), [], [], tasks=("pairs",), config=config)
    return pairs(Context({"tiny": model}, evalset, CONFIG))[0]


def test_sugarcrepe(model: DualEncoder, sugar: SetConfig) -> None:
    found, records = run(model, sugar), read_pairs(sugar)
    assert [records.key(i) for i in (0, 4, 8)] == ["add_att/0", "swap_obj/4", "swap_obj/9"]
    right = []
    with torch.inference_mode():
        for i in range(9):
            own, wrong = model.encode_text(model.tokenizer.batch(records.texts(i))[0])
            image = model.encode_image(records.image(i)[None])[0]
            right.append(bool(image @ own > image @ wrong))
    assert found.metrics == {"text_acc": np.mean(right)} and 0 < np.mean(right) < 1
    assert found.chance == {"text_acc": 0.5}
    parts = [float(np.mean(right[:4])), float(np.mean(right[4:]))]
    assert found.further == {"text_acc_macro": np.mean(parts)}
    assert found.details["kinds"] == {
        "add_att": {"n": 4, "text_acc": parts[0]},
        "swap_obj": {"n": 5, "text_acc": parts[1]},
    }
    assert found.tables["kinds"][1] == ["add_att", "4", str(parts[0])]
    assert (found.outcomes["scores"][:, 0] > found.outcomes["scores"][:, 1]).tolist() == right


def test_several_wrong_captions() -> None:
    scores = np.array([[3, 1, 2], [3, 4, np.nan], [3, 3, 1], [3, 2, np.nan]], dtype=np.float32)
    found = pair_metrics(scores)
    assert (found.metrics["text_acc"], found.pessimistic["text_acc"]) == (0.75, 0.5)
    assert found.chance["text_acc"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def by_argmax(grid: np.ndarray) -> dict[str, float]:
    """CLIP_benchmark's image_caption_selection on (examples, images, captions) scores."""
    text = (grid.argmax(2) == [0, 1]).all(1)
    image = (grid.argmax(1) == [0, 1]).all(1)
    return {"text_acc": text.mean(), "image_acc": image.mean(), "acc": (text & image).mean()}


def test_winoground_scores_are_clip_benchmarks_with_ties() -> None:
    grid = np.random.default_rng(0).integers(0, 4, (500, 2, 2)).astype(np.float32)
    rows = np.stack([grid[:, 0], grid[:, 1, ::-1]], axis=1).reshape(-1, 2)
    found = pair_metrics(rows, np.repeat(np.arange(500), 2).tolist())
    assert found.metrics == pytest.approx(by_argmax(grid))
    # Less a little for what is right: every tie is lost.
    assert found.pessimistic == pytest.approx(by_argmax(grid - 0.1 * np.eye(2)))
    assert found.pessimistic["acc"] < found.metrics["acc"]


@pytest.mark.parametrize(
    ("images", "expected"),
    [(1, {"text_acc": 0.626}), (2, {"text_acc": 0.214, "image_acc": 0.192, "acc": 0.152})],
)
def test_scores_are_those_of_clip_benchmark(images: int, expected: dict[str, float]) -> None:
    """Expected: clip_benchmark 1.6.2, `metrics.image_caption_selection.evaluate(model, batches of 50, tokenizer, "cpu",
    amp=False)` where the towers return these vectors. Their cosines are exact, and many are equal."""
    generator = np.random.default_rng(images)
    image = generator.choice([-1, 1], (500, images, 4)).astype(np.float32) / 2
    text = generator.choice([-1, 1], (500, 2, 4)).astype(np.float32) / 2
    grid = image @ text.swapaxes(1, 2)
    if images == 2:
        grid[:, 1] = grid[:, 1, ::-1]
    examples = np.repeat(np.arange(500), 2).tolist() if images == 2 else None
    found = pair_metrics(grid.reshape(-1, 2), examples)
    assert found.metrics == pytest.approx(expected, abs=1e-6)


def test_winoground_chance() -> None:
    grid = np.random.default_rng(0).random((40_000, 2, 2))
    assert by_argmax(grid) == pytest.approx({"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6}, abs=0.01)
    assert pair_metrics(np.ones((2, 2), np.float32), [0, 0]).chance == {
        "text_acc": 0.25,
        "image_acc": 0.25,
        "acc": 1 / 6,
    }


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_winoground_files(model: DualEncoder, images: Path, tmp_path: Path, suffix: str) -> None:
    entries, path = winoground(images), tmp_path / f"examples.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    else:
        path.write_text(json.dumps(entries) if suffix == "json" else "\n".join(map(json.dumps, entries)))
    config = SetConfig(str(path), task="pairs", images=str(images))
    records = read_pairs(config)
    assert [records.key(i) for i in (0, 5)] == ["examples/7/image_0", "examples/9/image_1"]
    assert records.texts(0) == records.texts(1)[::-1] == ["red before green", "green before red"]
    found = run(model, config)
    grid = found.outcomes["scores"].reshape(3, 2, 2).copy()
    grid[:, 1] = grid[:, 1, ::-1]
    assert found.metrics == pytest.approx(by_argmax(grid))
    assert found.outcomes["example"].tolist() == [0, 0, 1, 1, 2, 2]
    assert {kind: each["n"] for kind, each in found.details["kinds"].items()} == {
        "tag Object": 2,
        "num_main_preds 1": 3,
        "tag Relation": 1,
    }
    with pytest.raises(DataError, match="both images of every example"):
        evalset = EvalSet("set", "pairs", records.take([0, 1, 3]), [], [])
        pairs(Context({"tiny": model}, evalset, CONFIG))


def test_shards_of_captions_are_the_same_task(model: DualEncoder, sugar: SetConfig, tmp_path: Path) -> None:
    records = read_pairs(sugar)
    samples = [
        (f"{i}", {"png": png(COLOURS[NAMES[i % 4]]), "txt": "\n".join(records.texts(i)).encode()}) for i in range(8)
    ]
    write_tar(tmp_path / "shards/test/0.tar", samples)
    (tmp_path / "shards/test/nshards.txt").write_text("1")
    evalset = open_set(SetConfig(str(tmp_path / "shards"), task="pairs"))
    (found,) = pairs(Context({"tiny": model}, evalset, CONFIG))
    expected = run(model, sugar).outcomes["scores"]
    np.testing.assert_allclose(found.outcomes["scores"], expected[:8], atol=1e-6)
    assert found.details == {}


def test_ties_are_told(model: DualEncoder, sugar: SetConfig, caplog: pytest.LogCaptureFixture) -> None:
    entries = crepe(0)
    entries["2"]["negative_caption"] = entries["2"]["caption"]
    (Path(sugar.path) / "add_att.json").write_text(json.dumps(entries))
    found = run(model, sugar)
    assert found.metrics["text_acc"] - found.pessimistic["text_acc"] == pytest.approx(1 / 9)
    assert "in 1 of 9 images the right caption is also among the wrong ones, first add_att/2" in caplog.text
    assert "ties change what model tiny scores: text_acc" in caplog.text


def test_one_caption_is_refused(model: DualEncoder, colour_set: Path) -> None:
    from mmrep.evaluation.sets import open_set

    classes = open_set(SetConfig(str(colour_set)))
    with pytest.raises(ConfigError, match="task pairs needs images with a right and a wrong caption"):
        pairs(Context({"tiny": model}, classes, CONFIG))


def test_digest_follows_the_content(sugar: SetConfig) -> None:
    before = read_pairs(sugar).digest()
    assert read_pairs(sugar).digest() == before
    entries = crepe(0)
    entries["2"]["negative_caption"] = "another"
    (Path(sugar.path) / "add_att.json").write_text(json.dumps(entries))
    assert read_pairs(sugar).digest() != before


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"filename": "none.png"}, r"add_att\.json: example '0': no image 'none\.png'"),
    ({"filename": "../x.png"}, "leaves the image folder"),
    ({"caption": " "}, "example '0': 'caption' is empty or no text"),
    ({"caption": ["a", "b"]}, "'caption' is empty or no text"),
    ({"negative_caption": []}, "'negative_caption' is empty"),
    ({"negative_caption": ["right", ""]}, "'negative_caption' is empty or no text"),
    ({"negative_caption": None}, "no 'negative_caption'; expected filename, caption, negative_caption or image_0"),
]


@pytest.mark.parametrize(("fields", "message"), BROKEN)
def test_broken_examples(sugar: SetConfig, fields: dict[str, Any], message: str) -> None:
    entries = crepe(0)
    entries["0"] |= fields
    (Path(sugar.path) / "add_att.json").write_text(json.dumps(entries))
    with pytest.raises(DataError, match=message):
        read_pairs(sugar)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"add_att\.json: not JSON"),
        ("{}", "no examples in it"),
        ('{"1": 2}', "example '1': expected an object"),
        ('{"1": {}, "1": {}}', "the key '1' occurs twice"),
    ],
)
def test_broken_files(sugar: SetConfig, text: str, message: str) -> None:
    (Path(sugar.path) / "add_att.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_pairs(sugar)


def test_ids_that_occur_twice(images: Path, tmp_path: Path) -> None:
    entries = [{"id": 1, **each} for each in crepe(0).values()]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, entries)))
    with pytest.raises(DataError, match="the id 'a/1' occurs twice"):
        read_pairs(SetConfig(str(tmp_path / "a.jsonl"), task="pairs", images=str(images)))


def test_missing_places(sugar: SetConfig, images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="images: no such folder"):
        open_set(SetConfig(sugar.path, task="pairs", images=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="needs `images`, the folder"):
        open_set(SetConfig(f"{sugar.path}/add_att.json", task="pairs"))
    for place in (images, images / "red.png"):
        with pytest.raises(ConfigError, match=r"no \.json, \.jsonl, \.csv file there"):
            open_set(SetConfig(str(place), task="pairs", images=str(images)))
    (Path(sugar.path) / "wino.json").write_text(json.dumps(winoground(images)))
    with pytest.raises(ConfigError, match="of one image an example and of two"):
        read_pairs(sugar)
