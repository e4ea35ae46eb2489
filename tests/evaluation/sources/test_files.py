"""Sets of image files: every format gives what the shards give, labels are right, and what is wrong is said."""

import csv
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import png

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.config.evaluation import SetConfig
from mmrep.data.layouts.classes import imagenet_names, imagenet_wnids
from mmrep.data.shards import image_extension, read_member
from mmrep.data.tar import DataError
from mmrep.evaluation.sets import EvalSet, check_set, open_set
from mmrep.evaluation.sources.records import FileRecords


def put(path: Path, content: bytes | str | dict[str, Any]) -> Path:
    """Writes a file, its folders too; a dict as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def opened(path: Path, **fields: Any) -> EvalSet:
    config = SetConfig(str(path), **fields)
    check_set(config)
    return open_set(config)


def files_of(evalset: EvalSet, count: int) -> list[tuple[str, bytes]]:
    """Image files of a set in shards: key and content."""
    return [
        (index.keys[row].decode(), read_member(index, row, image_extension(index, row)))
        for index, row in evalset.records.samples[:count]
    ]


def write_captions(folder: Path, shards: EvalSet, count: int) -> None:
    """The first samples of a captions set as Karpathy's JSON, COCO's JSON, and a table."""
    entries, pictures, annotations, rows = [], [], [], [["title", "filepath"]]
    for i, (key, data) in enumerate(files_of(shards, count)):
        name, texts = f"{key}.jpg", shards.records.texts(i)
        put(folder / "images" / name, data)
        sentences = [{"raw": text, "sentid": 9 * i + turn} for turn, text in enumerate(texts)]
        entries.append({"filename": name, "split": "test", "sentences": sentences})
        pictures.append({"id": i, "file_name": name})
        annotations += [{"id": 9 * i + turn, "image_id": i, "caption": text} for turn, text in enumerate(texts)]
        rows += [[text, name] for text in texts]
    put(folder / "karpathy.json", {"images": entries})
    put(folder / "coco.json", {"images": pictures, "annotations": annotations[::2] + annotations[1::2]})
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_classes(folder: Path, shards: EvalSet, count: int) -> None:
    """The first samples of an ImageNet set as folders of wnids, folders of numbers, and a flat folder with labels."""
    wnids, lines = imagenet_wnids(), []
    for i, (key, data) in enumerate(files_of(shards, count)):
        label = shards.records.label(i)
        put(folder / "wnids/val" / wnids[label] / f"{key}.JPEG", data)
        put(folder / "numbers" / str(label) / f"{key}.jpeg", data)
        put(folder / "flat" / f"{key}.JPEG", data)
        lines.append(f"{key}.JPEG {wnids[label] if i % 2 else label}")
    put(folder / "labels.txt", "\n".join(lines[::-1]))


def stem(key: str) -> str:
    return Path(key).name.partition(".")[0]


@pytest.mark.parametrize(
    ("file", "fields"),
    [("karpathy.json", {"format": "karpathy"}), ("coco.json", {"format": "coco"}), ("table.csv", {"format": "csv"})],
)
def test_captions_are_those_of_the_shards(file: str, fields: Any, real_data: Path, tmp_path: Path) -> None:
    shards = open_set(SetConfig(str(real_data / "flickr8k_sample")))
    count = 25
    write_captions(tmp_path, shards, count)
    found = opened(tmp_path / file, images=str(tmp_path / "images"), **fields)
    assert (found.task, found.name, len(found.records)) == ("retrieval", file.partition(".")[0], count)
    for position in range(count):
        assert stem(found.keys()[position]) == shards.keys()[position].rpartition("/")[2]
        assert sorted(found.records.texts(position)) == sorted(shards.records.texts(position))
        assert found.records.image(position).equal(shards.records.image(position))
    if file != "coco.json":
        assert found.records.texts(3) == shards.records.texts(3)
    first = opened(tmp_path / file, images=str(tmp_path / "images"), captions_per_image=2, **fields)
    assert first.records.texts(3) == found.records.texts(3)[:2]


@pytest.mark.parametrize(
    ("place", "fields", "classes"),
    [
        ("wnids", {"format": "folder", "split": "val", "classnames": "imagenet"}, 30),
        ("numbers", {"format": "folder", "split": ".", "classnames": "imagenet"}, 1000),
        ("flat", {"format": "imagenet-val", "labels": "labels.txt"}, 1000),
    ],
)
def test_classes_are_those_of_the_shards(
    place: str, fields: Any, classes: int, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = open_set(SetConfig(str(real_data / "imagenet_sample")))
    write_classes(tmp_path, shards, 30)
    monkeypatch.chdir(tmp_path)
    found = opened(tmp_path / place, **fields)
    assert (found.task, found.name, len(found.records)) == ("zeroshot", place, 30)
    assert len(found.classnames) == classes and found.templates == shards.templates
    by_key = {key.rpartition("/")[2]: position for position, key in enumerate(shards.keys())}
    for position, key in enumerate(found.keys()):
        other = by_key[stem(key)]
        assert found.classnames[found.records.label(position)] == shards.classnames[shards.records.label(other)]
        assert found.records.image(position).equal(shards.records.image(other))
        if classes == 1000:
            assert found.records.label(position) == shards.records.label(other)


def class_folders(root: Path, folders: dict[str, int]) -> Path:
    for i, (folder, count) in enumerate(folders.items()):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            put(root / folder / f"{number}.jpg", png((10 * i + number, 40, 90)))
    return root


def test_numbers_are_labels_though_text_sorts_them_otherwise(tmp_path: Path) -> None:
    class_folders(tmp_path / "v2", {"0": 1, "10": 1, "2": 1, "999": 1})
    found = opened(tmp_path / "v2", format="folder", split=".", classnames="imagenet")
    assert [(key, found.records.label(i)) for i, key in enumerate(found.keys())] == [
        ("0/0.jpg", 0), ("10/0.jpg", 10), ("2/0.jpg", 2), ("999/0.jpg", 999)
    ]  # fmt: skip
    assert found.classnames == imagenet_names()


def test_folders_are_labels_in_their_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folders(tmp_path / "set/test", {"cat": 1, "dog": 2, "ant": 1})
    found = opened(tmp_path / "set", format="folder")
    assert (found.classnames, found.templates) == (["ant", "cat", "dog"], ["a photo of a {c}."])
    assert [found.records.label(i) for i in range(4)] == [0, 1, 2, 2]
    class_folders(tmp_path / "odd/test", {"0": 1, "1": 1})
    with caplog.at_level(logging.WARNING, "mmrep"):
        opened(tmp_path / "odd", format="folder")
    assert "2 class folders are called by numbers, the first '0'" in caplog.text


NAMES = {
    "in order": ("Ameise\nKatze\nHund\n", ["Ameise", "Katze", "Hund"]),
    "by folder": ("dog\tHund\nant\tAmeise\nxx\tYY\ncat\tHaus Katze\n", ["Ameise", "Haus Katze", "Hund"]),
    "too few": ("Ameise\nKatze\n", "has 2 names, but the set has 3 classes"),
    "too many": ("a\nb\nc\nd\n", "has 4 names, but the set has 3 classes"),
    "blanks for tabs": ("ant red ant\ncat Katze\ndog Hund\n", "put a tab between folder and name"),
    "tabs and none": ("ant\tAmeise\nKatze\nHund\n", "some lines have a tab, others have none"),
    "twice": ("ant\ta\ncat\tc\nant\tb\n", "a folder is named twice"),
    "not all": ("ant\ta\ncat\tc\n", "has no name for 1 of 3 class folders, the first 'dog'"),
    "blank": ("a\n\nc\n", "line 2 is blank"),
}


@pytest.mark.parametrize(("text", "expected"), NAMES.values(), ids=NAMES)
def test_names_of_folders(text: str, expected: list[str] | str, tmp_path: Path) -> None:
    class_folders(tmp_path / "set/test", {"cat": 1, "dog": 1, "ant": 1})
    file = put(tmp_path / "names.txt", text)
    if isinstance(expected, list):
        assert opened(tmp_path / "set", format="folder", classnames=str(file)).classnames == expected
    else:
        with pytest.raises(MmrepError, match=expected):
            opened(tmp_path / "set", format="folder", classnames=str(file))


def test_folders_that_are_no_classes_of_imagenet(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", {"train": 1, "n01440764": 1})
    with pytest.raises(ConfigError, match="1 of 2 class folders are neither a wnid .*, the first 'train'"):
        opened(tmp_path / "set", format="folder", split=".", classnames="imagenet")


@pytest.mark.parametrize(("split", "right"), [(".", "test"), ("x", "x/test")])
def test_splits_are_no_classes(split: str, right: str, tmp_path: Path) -> None:
    root = tmp_path / "set" / split
    put(root / "test/readme.txt", "cats and dogs")
    class_folders(root, {"test/cat": 1, "test/dog": 1, "train/cat": 1, "train/dog": 1})
    with pytest.raises(ConfigError, match=f"folder 'test' holds only folders: is it a split. give split: {right}$"):
        opened(tmp_path / "set", format="folder", split=split)
    deeper = class_folders(tmp_path / "deeper", {"cat/images": 1, "dog/images": 1})
    class_folders(deeper, {"ant/red": 1, "ant/black": 1})
    put(deeper / "ant/0.png", png((9, 9, 9)))
    assert opened(deeper, format="folder", split=".").classnames == ["ant", "cat", "dog"]


def test_messages_name_fields_of_sets(tmp_path: Path) -> None:
    put(tmp_path / "flat/a.JPEG", png((0, 40, 90)))
    labels = put(tmp_path / "labels.txt", "7\n")
    with pytest.raises(ConfigError, match="^evaluation set .*meta.mat as `devkit_meta`$"):
        opened(tmp_path / "flat", format="imagenet-val", labels=str(labels))
    table, images = put(tmp_path / "t.csv", "image,text\na,b\n"), str(tmp_path / "flat")
    with pytest.raises(MmrepError, match="see `image_column`, `caption_column`, `separator`$") as error:
        opened(table, format="csv", images=images)
    assert str(error.value).count(str(table)) == 1
    with pytest.raises(ConfigError, match="^evaluation set .*: `separator`: expected one character"):
        opened(table, format="csv", images=images, separator="xy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="`path`: no class folders in"):
        opened(tmp_path / "empty", format="folder", split=".")


def test_imagenet_names_of_a_wrong_number(tmp_path: Path) -> None:
    put(tmp_path / "flat/a.JPEG", png((0, 40, 90)))
    labels, names = put(tmp_path / "labels.txt", "a.JPEG 7\n"), put(tmp_path / "names.txt", "\n".join("x" * 999))
    with pytest.raises(ConfigError, match=r"names.txt has 999 names, but the set has 1000 classes"):
        opened(tmp_path / "flat", format="imagenet-val", labels=str(labels), classnames=str(names))


def test_images_that_share_a_label(tmp_path: Path) -> None:
    for name in ("a.JPEG", "a.png"):
        put(tmp_path / "flat" / name, png((0, 40, 90)))
    labels = put(tmp_path / "labels.txt", "a.JPEG 7\n")
    with pytest.raises(DataError, match=r"1 problems .* a\.png: has the same stem as a\.JPEG"):
        opened(tmp_path / "flat", format="imagenet-val", labels=str(labels))


def coco_file(folder: Path, count: int) -> dict[str, Any]:
    """COCO's captions: images, then two captions of each, mixed."""
    names = {1000 + i: f"{i:012d}.jpg" for i in range(count)}
    for i, name in enumerate(names.values()):
        put(folder / "images" / name, png((i, 40, 90)))
    return {
        "images": [{"file_name": name, "id": number} for number, name in names.items()],
        "annotations": [
            {"image_id": number, "id": 10 * number + turn, "caption": f"caption {turn} of {number}"}
            for turn in range(2)
            for number in names
        ],
    }


def coco(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> EvalSet:
    content = coco_file(tmp_path, 4)
    change(content)
    put(tmp_path / "c.json", content)
    return opened(tmp_path / "c.json", format="coco", images=str(tmp_path / "images"))


GRAVE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "image twice": (lambda c: c["images"].append(c["images"][0]), r"image 1000 \(000000000000.jpg\): duplicate image"),
    "caption twice": (lambda c: c["annotations"].append(c["annotations"][0]), "caption 10000: duplicate caption id"),
    "no such image": (lambda c: c["annotations"][0].update(image_id=5), "caption 10000: unknown image id 5"),
    "missing file": (
        lambda c: c["images"][2].update(file_name="x.jpg"),
        r"1 of 4 .* missing in \S+, the first: x\.jpg",
    ),
    "nothing": (lambda c: c.update(images=[], annotations=[]), "no images in it"),
}


@pytest.mark.parametrize(("change", "reason"), GRAVE.values(), ids=GRAVE)
def test_annotations_that_are_wrong(change: Callable[[dict[str, Any]], Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"evaluation set \S+c\.json: .*{reason}") as error:
        coco(tmp_path, change)
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def empty(content: dict[str, Any]) -> None:
        for number in (0, 1, 5):
            content["annotations"][number]["caption"] = " "

    with caplog.at_level(logging.WARNING, "mmrep"):
        found = coco(tmp_path, empty)
    assert len(found.records) == 3 and len(found.records.texts(0)) == 1
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "2 left out, the first: image 1000 (000000000000.jpg): caption 0 is empty"
    ]


def test_strange_files_among_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class_folders(tmp_path / "set/test", {"cat": 2, "dog": 0})
    put(tmp_path / "set/test/cat/Thumbs.db", b"x")
    put(tmp_path / "set/test/x.png", png((1, 2, 3)))
    with caplog.at_level(logging.WARNING, "mmrep"):
        found = opened(tmp_path / "set", format="folder")
    assert (len(found.records), found.classnames) == (2, ["cat", "dog"])
    assert "3 left out, the first: x.png: lies in no class folder" in caplog.text


def test_missing_splits_are_listed(tmp_path: Path) -> None:
    class_folders(tmp_path / "set", {"train/cat": 1, "val/cat": 1})
    with pytest.raises(ConfigError, match=r"no split 'test' \(it has train, val; split: \. is the folder itself\)"):
        check_set(SetConfig(str(tmp_path / "set"), format="folder"))
    entries = [{"filename": "x.jpg", "split": split, "sentences": [{"raw": "x"}]} for split in ("train", "test")]
    put(tmp_path / "k.json", {"images": entries})
    with pytest.raises(DataError, match=r"no images of the split val \(it has test, train\)"):
        opened(tmp_path / "k.json", format="karpathy", images=str(tmp_path), split="val")


def test_tables(tmp_path: Path) -> None:
    put(tmp_path / "images/x/1.jpg", png((1, 40, 90)))
    put(tmp_path / "t.csv", "image;text\nx/1.jpg;one\nx/1.jpg;two\n")
    columns = {"image_column": "image", "caption_column": "text", "separator": ";"}
    found = opened(tmp_path / "t.csv", format="csv", images=str(tmp_path / "images"), **columns)
    assert (found.keys(), found.records.texts(0)) == (["x/1.jpg"], ["one", "two"])
    put(tmp_path / "t.csv", "filepath,title\nx/1.jpg,one, two\n")
    with pytest.raises(DataError, match="1 problems .*: line 2: 3 fields, but the header has 2"):
        opened(tmp_path / "t.csv", format="csv", images=str(tmp_path / "images"))


def test_records_of_files(tmp_path: Path) -> None:
    class_folders(tmp_path / "set/test", {"cat": 1, "dog": 2})
    records = opened(tmp_path / "set", format="folder").records
    assert isinstance(records, FileRecords)
    few = records.take([2, 0])
    assert (len(few), few.key(0), few.label(0), few.labels(1)) == (2, "dog/1.jpg", 1, [0])
    assert pickle.loads(pickle.dumps(records)) == records
    with pytest.raises(DataError, match=r"cat/0\.jpg: no caption"):
        records.texts(0)
    (tmp_path / "set/test/dog/0.jpg").write_bytes(png((3, 40, 90))[:60])
    with pytest.raises(DataError, match=r"dog/0\.jpg: can't decode image"):
        records.image(1)
    (tmp_path / "set/test/cat/0.jpg").unlink()
    with pytest.raises(DataError, match=r"cat/0\.jpg: No such file"):
        records.image(0)


def test_digests_of_files(tmp_path: Path) -> None:
    digests = [coco(tmp_path, lambda _: None).records.digest()]
    with (tmp_path / "images/000000000000.jpg").open("ab") as file:
        file.write(b"\0")
    records = open_set(SetConfig(str(tmp_path / "c.json"), format="coco", images=str(tmp_path / "images"))).records
    digests += [records.digest(), records.take([1, 0]).digest(), records.take([0]).digest()]
    content = json.loads((tmp_path / "c.json").read_text())
    content["annotations"][0]["caption"] = "another"
    put(tmp_path / "c.json", content)
    again = open_set(SetConfig(str(tmp_path / "c.json"), format="coco", images=str(tmp_path / "images"))).records
    digests.append(again.digest())
    assert len(set(digests)) == 5 and again.digest() == digests[-1]
