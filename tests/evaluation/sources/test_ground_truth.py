"""Ground truths of instances: both forms of file, what does not fit together, and the images that they name."""

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import SetConfig
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.ground_truth import GRADES, open_instances, read_ground_truth


def content(**changes: Any) -> dict[str, Any]:
    """A ground truth of four gallery images and two queries."""
    gnd = [
        {"bbx": [1.4, 2.5, 9.6, 7.5], "easy": [0], "hard": [2], "junk": [3]},
        {"bbx": [0, 0, 4, 4], "easy": [], "hard": [1], "junk": []},
    ]
    return {"imlist": ["a", "b", "sub/c", "d"], "qimlist": ["q", "a"], "gnd": gnd} | changes


def as_arrays(value: dict[str, Any]) -> dict[str, Any]:
    """As the authors' file has it: positions as arrays."""
    gnd = [{**each, **{grade: np.array(each[grade], np.int64) for grade in GRADES}} for each in value["gnd"]]
    return {**value, "gnd": gnd}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose pixels tell where they are from."""
    for name in ("a.jpg", "b.jpeg", "sub/c.png", "d.webp", "q.png"):
        path = tmp_path / "jpg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((10, 12, 3), np.uint8)
        pixels[:, :, 0], pixels[:, :, 1] = np.arange(10)[:, None], np.arange(12)
        Image.fromarray(pixels).save(path)
    return tmp_path


def written(folder: Path, value: dict[str, Any], name: str = "gnd.json") -> Path:
    path = folder / name
    path.write_bytes(json.dumps(value).encode() if name.endswith("json") else pickle.dumps(as_arrays(value)))
    return path


@pytest.mark.parametrize("name", ["gnd.json", "gnd_roxford5k.pkl"])
def test_both_forms_are_read(tmp_path: Path, name: str) -> None:
    found = read_ground_truth(written(tmp_path, content(), name))
    assert found.gallery == ("a", "b", "sub/c", "d")
    first, second = found.queries
    assert (first.name, first.box) == ("q", (1.4, 2.5, 9.6, 7.5))
    assert [part.tolist() for part in first[2:]] == [[0], [2], [3]]
    assert [part.tolist() for part in second[2:]] == [[], [1], []]
    assert all(part.dtype == np.int64 for part in (*first[2:], *second[2:]))


def with_query(**changes: Any) -> dict[str, Any]:
    value = content()
    value["gnd"][0] |= changes
    return value


WRONG = {
    "expected a dictionary with imlist, qimlist and gnd": {"imlist": ["a"]},
    r"imlist: expected a list of names": content(imlist=["a", 3]),
    r"qimlist: expected a list of names": content(qimlist=[]),
    r"imlist: 1 names occur twice, first 'b'": content(imlist=["a", "b", "b", "d"]),
    r"'\.\./c' leads out of the folder": content(imlist=["a", "b", "../c", "d"]),
    r"qimlist: '/etc/q' leads out of the folder": content(qimlist=["/etc/q", "a"]),
    r"one dictionary for each of the 2 queries": content(gnd=[{}]),
    r"query 0 \(q\): expected a dictionary with bbx, easy, hard and junk": content(gnd=[{}, {}]),
    r"query 0 \(q\): easy: expected integers from 0 to 3": with_query(easy=[4]),
    r"query 0 \(q\): hard: expected integers from 0 to 3": with_query(hard=[-1]),
    r"query 0 \(q\): junk: expected integers from 0 to 3": with_query(junk=[1.0]),
    r"query 0 \(q\): easy: expected integers from 0": with_query(easy=[1, [2]]),
    r"query 0 \(q\): an image is named twice among easy, hard and junk": with_query(junk=[0]),
    r"query 0 \(q\): bbx: expected four numbers": with_query(bbx=[1, 2, 3]),
    r"query 0 \(q\): bbx: expected left < right and top < bottom": with_query(bbx=[5, 0, 5, 9]),
    r"bbx: expected left < right and top < bottom, got \(nan": with_query(bbx=["nan", 0, 5, 9]),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_together_is_named(tmp_path: Path, message: str) -> None:
    with pytest.raises(DataError, match=r"^ground truth .*gnd\.json: " + r".*" + message):
        read_ground_truth(written(tmp_path, WRONG[message]))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ground truth .*none\.pkl: no such file"):
        read_ground_truth(tmp_path / "none.pkl")
    for name, message in (("x.json", "not JSON"), ("x.pkl", "truncated, damaged, or not a pickle")):
        (tmp_path / name).write_text("<html>")
        with pytest.raises(DataError, match=rf"{name}: {message}"):
            read_ground_truth(tmp_path / name)


def config(folder: Path, **changes: Any) -> SetConfig:
    truth = written(folder, content(**changes))
    return SetConfig(str(folder / "jpg"), name="towers", task="instance", ground_truth=str(truth))


def test_queries_are_cut_to_their_box(folder: Path) -> None:
    records = open_instances(config(folder))
    assert [records.key(i) for i in range(len(records))] == ["a", "b", "sub/c", "d", "query 0 q", "query 1 a"]
    assert records.image(0).shape == (3, 10, 12)
    # Corners are rounded to whole pixels, halves to even ones as Python and Pillow do: 1, 2, 10, 8.
    part = records.image(4)
    assert part.shape == (3, 6, 9)
    assert torch.equal(part[0, :, 0], torch.arange(2, 8).byte()) and torch.equal(part[1, 0], torch.arange(1, 10).byte())
    with Image.open(folder / "jpg/q.png") as image:
        expected = np.asarray(image.crop((1.4, 2.5, 9.6, 7.5)))
    np.testing.assert_array_equal(part.permute(1, 2, 0).numpy(), expected)
    assert records.image(5).shape == (3, 4, 4)


def test_a_box_beyond_the_image(folder: Path) -> None:
    value = content()
    value["gnd"][0]["bbx"] = [-3, 4, 500, 600]
    value["gnd"][1]["bbx"] = [12, 0, 20, 5]
    records = open_instances(config(folder, gnd=value["gnd"]))
    assert records.image(4).shape == (3, 6, 12)
    with pytest.raises(DataError, match=r"query 1 a: box .* lies outside of .*a\.jpg, 12 × 10 pixels"):
        records.image(5)


def test_missing_and_damaged_images(folder: Path) -> None:
    (folder / "jpg/b.jpeg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.jpeg: not an image"):
        open_instances(config(folder)).image(1)
    (folder / "jpg/q.png").unlink()
    with pytest.raises(
        DataError, match="evaluation set .*jpg: 1 of 6 images of .*gnd.json are missing, first 'query 0 q'"
    ):
        open_instances(config(folder))
    with pytest.raises(ConfigError, match="no such folder of images"):
        open_instances(SetConfig(str(folder / "none"), ground_truth="x"))
    with pytest.raises(ConfigError, match="needs ground_truth"):
        open_instances(SetConfig(str(folder)))


def test_records_without_classes_and_captions(folder: Path) -> None:
    records = open_instances(config(folder))
    for ask in (records.label, records.labels, records.texts):
        with pytest.raises(DataError, match="query 0 q: the images of this set have no"):
            ask(4)


def test_digest_changes_with_files_and_boxes(folder: Path) -> None:
    records = open_instances(config(folder))
    before = records.digest()
    assert open_instances(config(folder)).digest() == before
    assert records.take([0, 1]).digest() != before and records.take(range(6)).digest() == before
    value = content()
    value["gnd"][1]["bbx"] = [0, 0, 4, 5]
    assert open_instances(config(folder, gnd=value["gnd"])).digest() != before
    buffer = io.BytesIO()
    Image.new("RGB", (5, 5)).save(buffer, "PNG")
    (folder / "jpg/q.png").write_bytes(buffer.getvalue())
    assert open_instances(config(folder)).digest() != before
