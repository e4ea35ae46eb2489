"""Readers of others' layouts: problems counted one by one, malformed files refused by name, no way out of a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import originals
import pytest
from originals import picture, put

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.data.layouts.captions import read_coco, read_karpathy, read_redcaps, read_table
from mmrep.data.layouts.classes import read_folder, read_imagenet_val
from mmrep.data.layouts.contents import Contents, content_extension, image_kind, within_folder
from mmrep.data.tar import DataError


def said(contents: Contents) -> list[str]:
    return [f"{problem.item}: {problem.reason}" for problem in contents.problems]


def captions(contents: Contents) -> dict[str, tuple[str, ...]]:
    return {item.name: item.captions for item in contents.items}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_content_tells_the_extension(kind: str, tmp_path: Path) -> None:
    assert image_kind(put(tmp_path / "x.gif", picture(3, kind))) == {"JPEG": "jpg"}.get(kind, kind.lower())


@pytest.mark.parametrize("start", [b"", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", b"\x89PNG", b"GIF89a", b"BM"])
def test_other_content(start: bytes) -> None:
    assert content_extension(start) is None


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in ("../x.jpg", "a/../../x.jpg", "a/..", "/etc/passwd", f"{folder}/../x", f"{folder}x/y.jpg"):
        with pytest.raises(DataError, match="here: .* leaves the image folder"):
            within_folder(folder, name, "here")
    for name in ("", ".", "a\0b"):
        with pytest.raises(DataError, match="is not a file name"):
            within_folder(folder, name, "here")
    assert within_folder(folder, "a/./b..c.jpg", "here") == "a/b..c.jpg"
    assert within_folder(folder, f"{folder}/a/b.jpg", "here") == "a/b.jpg"


def test_links_in_the_folder_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/a.jpg", picture(1))
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "elsewhere")
    place = within_folder(tmp_path / "images", "link/a.jpg", "here")
    assert image_kind(tmp_path / "images" / place) == "jpg"


ESCAPES: dict[str, Callable[[Path], Contents]] = {
    "coco": lambda root: read_coco(
        put(root / "c.json", {"images": [{"id": 1, "file_name": "../x.jpg"}], "annotations": []}), root, "train"
    ),
    "karpathy": lambda root: read_karpathy(
        put(root / "k.json", {"images": [{"filepath": "..", "filename": "x.jpg", "split": "val", "sentences": []}]}),
        root,
        ["val"],
    ),
    "csv": lambda root: read_table(put(root / "t.csv", "filepath,title\n/etc/passwd,text\n"), root, "train"),
    "redcaps": lambda root: read_redcaps(
        [put(root / "r.json", {"annotations": [{"image_id": "x", "subreddit": "..", "caption": "text"}]})],
        root,
        "train",
    ),
}


@pytest.mark.parametrize("read", ESCAPES.values(), ids=ESCAPES)
def test_no_format_leaves_the_folder(read: Callable[[Path], Contents], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leaves the image folder"):
        read(tmp_path)


def test_coco_problems(tmp_path: Path) -> None:
    originals.coco(tmp_path / "c.json", tmp_path / "images", 5)
    content = json.loads((tmp_path / "c.json").read_text())
    content["images"].append(content["images"][0])
    content["images"].append({"id": 7, "file_name": "000000000001.jpg"})
    content["images"].append({"id": 8, "file_name": "new.jpg"})
    content["annotations"][2]["caption"] = " \n"
    content["annotations"][3]["caption"] = content["annotations"][8]["caption"] = None
    content["annotations"][4]["caption"] = "\ud83d"
    content["annotations"][5]["image_id"] = 99
    content["annotations"][6]["id"] = content["annotations"][1]["id"]
    contents = read_coco(put(tmp_path / "c.json", content), tmp_path / "images", "train")
    assert said(contents) == [
        "image 1000 (000000000000.jpg): duplicate image id",
        "caption 10001: unknown image id 99",
        "caption 10010: duplicate caption id",
        "image 1002 (000000000002.jpg): caption 0 is empty",
        "image 1003 (000000000003.jpg): no caption (caption 0 is not a text)",
        "image 1004 (000000000004.jpg): caption 0 is not valid Unicode",
        "image 7 (000000000001.jpg): this file is listed twice",
        "image 8 (new.jpg): no caption",
    ]
    assert {name: len(lines) for name, lines in captions(contents).items()} == {
        "000000000000.jpg": 1, "000000000001.jpg": 1, "000000000002.jpg": 1, "000000000004.jpg": 1
    }  # fmt: skip


BAD_FILES: dict[str, tuple[Any, str]] = {
    "not json": ("{", "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "latin": (b'{"images": "\xe9"}', "not UTF-8"),
    "a list": ("[]", "no list under 'images'"),
    "no annotations": ({"images": []}, "no list under 'annotations'"),
    "no objects": ({"images": [3], "annotations": []}, r"images\[0\] is not an object"),
    "no id": ({"images": [{"file_name": "x"}], "annotations": []}, r"images\[0\]: .*'id': nothing"),
    "a list as id": ({"images": [{"id": [], "file_name": "x"}], "annotations": []}, r"images\[0\]: .*'id': \[\]"),
    "true as id": ({"images": [{"id": True, "file_name": "x"}], "annotations": []}, r"images\[0\]: .*'id': True"),
    "no name": ({"images": [{"id": 1, "file_name": None}], "annotations": []}, r"images\[0\]: .*'file_name': None"),
    "no image": ({"images": [], "annotations": [{"id": 1}]}, r"annotations\[0\]: .*'image_id': nothing"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_malformed_json(content: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"c\.json.*{reason}") as caught:
        read_coco(put(tmp_path / "c.json", content), tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_karpathy_splits(tmp_path: Path) -> None:
    originals.karpathy(tmp_path / "k.json", tmp_path / "images", "coco")
    path, images = tmp_path / "k.json", tmp_path / "images"
    with_it = read_karpathy(path, images, ["train"])
    assert [(item.name, item.split) for item in with_it.items] == [
        ("train2014/000000.jpg", "train"), ("val2014/000001.jpg", "train"),
        ("train2014/000004.jpg", "train"), ("val2014/000005.jpg", "train"),
    ]  # fmt: skip
    assert all(image_kind(images / item.name) == "jpg" for item in with_it.items)
    without = read_karpathy(path, images, ["train"], restval=False)
    assert [item.name for item in without.items] == ["train2014/000000.jpg", "train2014/000004.jpg"]
    both = read_karpathy(path, images, ["val", "test"])
    assert [item.split for item in both.items] == ["val", "test", "val", "test"]
    with pytest.raises(ConfigError, match="--split: unknown value 'restval'"):
        read_karpathy(path, images, ["restval"])


def test_karpathy_malformed(tmp_path: Path) -> None:
    entry = {"filename": "x.jpg", "split": "train", "sentences": [{"raw": "text"}]}
    with pytest.raises(DataError, match=r"images\[1\]: unknown split 'dev'"):
        read_karpathy(put(tmp_path / "k.json", {"images": [entry, entry | {"split": "dev"}]}), tmp_path, ["train"])
    with pytest.raises(DataError, match="no images of the split val, test"):
        read_karpathy(put(tmp_path / "k.json", {"images": [entry]}), tmp_path, ["train", "val", "test"])
    twice = read_karpathy(put(tmp_path / "k.json", {"images": [entry, entry]}), tmp_path, ["train"])
    assert said(twice) == ["image x.jpg: this file is listed twice"] and len(twice.items) == 1


def table(tmp_path: Path, text: str | bytes, **options: Any) -> Contents:
    return read_table(put(tmp_path / "t.csv", text), tmp_path, "train", **options)


def test_table_rows(tmp_path: Path) -> None:
    contents = table(tmp_path, 'title,n,filepath\n"a, ""b""\nc",1,x/1.jpg\n\nd,2,x/2.jpg\ne,3,x/./1.jpg\n')
    assert captions(contents) == {"x/1.jpg": ('a, "b" c', "e"), "x/2.jpg": ("d",)} and not contents.problems
    crlf = table(tmp_path, b"\xef\xbb\xbffilepath\ttitle\r\n1.jpg\ta, b\r\n")
    assert captions(crlf) == {"1.jpg": ("a, b",)}
    other = table(tmp_path, "i;t\n1.jpg;a\tb,c\n", image_column="i", caption_column="t", separator=";")
    assert captions(other) == {"1.jpg": ("a b,c",)}
    stray = table(tmp_path, 'filepath\ttitle\n0.jpg\t"unbalanced\n1.jpg\tone\n2.jpg\ttwo"\n3.jpg\tthree\n')
    assert captions(stray) == {"3.jpg": ("three",)}
    assert said(stray) == ["line 4: a tab within quotes: are they stray?"]
    for separator in ("tab", "\\t", "\t"):
        assert captions(table(tmp_path, "filepath\ttitle\n1\ta\n", separator=separator)) == {"1": ("a",)}


def test_table_problems(tmp_path: Path) -> None:
    contents = table(tmp_path, "filepath,title\n1.jpg,a\n2.jpg,a,b\n3.jpg\n ,c\n4.jpg, \n1.jpg,\n")
    assert said(contents) == [
        "line 3: 3 fields, but the header has 2",
        "line 4: 1 fields, but the header has 2",
        "line 5: nothing under 'filepath'",
        "1.jpg: caption 1 is empty",
        "4.jpg: no caption (caption 0 is empty)",
    ]
    assert captions(contents) == {"1.jpg": ("a",)}


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("filepath,title\n1.jpg,\"a\n2.jpg,b\n", {}, "unexpected end of data; check the quotes"),
        ("filepath,title\n1.jpg,\"a\"b\n", {}, "line 2: .*check the quotes"),
        ("path,title\n", {}, "expected one column 'filepath', found path, title"),
        ("title,title,filepath\n", {}, "expected one column 'title'"),
        ("", {}, "found none"),
        ("filepath,title\n", {"separator": "ab"}, "--sep: expected one character"),
        ("filepath,title\n", {"separator": '"'}, "--sep: expected one character"),
        (b"filepath,title\n1.jpg,caf\xe9\n", {}, "not UTF-8"),
        (b"filepath,title\n1.jpg," + b"x" * 200_000, {}, "field larger than field limit"),
    ],
)  # fmt: skip
def test_bad_tables(text: str | bytes, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(MmrepError, match=reason):
        table(tmp_path, text, **options)


def test_redcaps(tmp_path: Path) -> None:
    originals.redcaps(tmp_path)
    path = tmp_path / "annotations/birdpics_2017.json"
    content = json.loads(path.read_text())
    content["annotations"] += [content["annotations"][0], content["annotations"][0] | {"image_id": "z", "caption": ""}]
    put(path, content)
    contents = read_redcaps([path], tmp_path / "images", "train")
    assert said(contents) == [
        "image b0x (birdpics/b0x.jpg): duplicate image id",
        "image z (birdpics/z.jpg): no caption (caption 0 is empty)",
    ]
    raw = read_redcaps([tmp_path / "annotations"], tmp_path / "images", "train", "raw_caption")
    assert [item.captions for item in raw.items][:2] == [("A abandoned PIC 0 (OC)",), ("A abandoned PIC 1 (OC)",)]
    assert raw.sources == [tmp_path / "annotations/abandoned_2017.json", path]
    with pytest.raises(ConfigError, match="did you mean 'caption'"):
        read_redcaps([path], tmp_path / "images", "train", "captions")
    with pytest.raises(ConfigError, match=r"no \*\.json"):
        read_redcaps([tmp_path / "images"], tmp_path / "images", "train")


def test_class_folders(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/deep/1.jpg", "b/.hidden.jpg", ".git/x.jpg", "a/notes.txt", "stray.jpg", "README"):
        put(tmp_path / name, picture(1) if name.endswith("jpg") else "text")
    (tmp_path / "c").mkdir()
    (tmp_path / "b/circle").symlink_to(tmp_path / "b")
    contents = read_folder(tmp_path, "train")
    assert [(item.name, item.label) for item in contents.items] == [
        ("a/notes.txt", 0),
        ("b/2.jpg", 1),
        ("b/deep/1.jpg", 1),
    ]
    assert contents.classnames == ["a", "b", "c"] and contents.templates == ["a photo of a {c}."]
    assert said(contents) == ["stray.jpg: lies in no class folder", "class c: no images in its folder"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("a apple\n", "no name for the class folder 'b c'"),
        ("a apple\nb c\tbanana cake\nd\n", "line 3: expected `FOLDER NAME`, got 'd'"),
        ("a apple\na ant\n", "line 2: 'a' is listed twice"),
        (None, "can't read"),
    ],
)
def test_class_names(names: str | None, reason: str, tmp_path: Path) -> None:
    put(tmp_path / "images/a/1.jpg", picture(1))
    put(tmp_path / "images/b c/1.jpg", picture(2))
    place = tmp_path / "names.txt"
    if names is not None:
        put(place, names)
    with pytest.raises(MmrepError, match=reason):
        read_folder(tmp_path / "images", "train", str(place))
    put(place, "a apple pie\nb c\tbanana\nmore than there are\n")
    assert read_folder(tmp_path / "images", "train", str(place)).classnames == ["apple pie", "banana"]
    put(tmp_path / "templates.txt", "a {c}\na c\n")
    with pytest.raises(ConfigError, match=r"'a c' has no \{c\}"):
        read_folder(tmp_path / "images", "train", templates=str(tmp_path / "templates.txt"))
    with pytest.raises(ConfigError, match="no class folders"):
        read_folder(tmp_path / "images/a", "train")
    with pytest.raises(DataError, match="no name for the class folder 'a'"):
        read_folder(tmp_path / "images", "train", "imagenet")


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    originals.imagenet_val(tmp_path / "val", tmp_path / "val.txt", tmp_path / "devkit")
    return tmp_path


def flat_labels(flat: Path, text: str | None = None, meta: bool = False) -> list[int | None]:
    labels = put(flat / "labels.txt", text) if text else flat / "devkit/ILSVRC2012_validation_ground_truth.txt"
    contents = read_imagenet_val(flat / "val", labels, "test", devkit_meta=flat / "devkit/meta.mat" if meta else None)
    assert not contents.problems
    return [item.label for item in contents.items]


def test_imagenet_labels(flat: Path) -> None:
    wnids = [originals.WNIDS[label] for label in (2, 0, 1, 2, 0)]
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 6)]
    assert flat_labels(flat, "\n".join(wnids)) == [2, 0, 1, 2, 0]
    assert flat_labels(flat, "".join(f"{name}.JPEG {wnid}\n" for name, wnid in zip(names, wnids, strict=True))) == [
        2,
        0,
        1,
        2,
        0,
    ]
    assert flat_labels(flat, "".join(f"{name} 99{i}\n" for i, name in enumerate(names[::-1]))) == [
        994,
        993,
        992,
        991,
        990,
    ]
    assert flat_labels(flat, meta=True) == [2, 0, 1, 2, 0]


@pytest.mark.parametrize(
    ("text", "meta", "reason"),
    [
        (None, False, "line 1: a number alone counts in the devkit's own order, .*--devkit_meta"),
        ("442\n1001\n", True, "line 2: unknown class n00001740"),
        ("442\n443\n", True, r"line 2: unknown class 443 \(in --devkit_meta\)"),
        ("a 1000\n", False, "line 1: unknown class 1000; expected a wnid"),
        ("a -1\n", False, "line 1: unknown class -1"),
        ("n00001740\n", False, "line 1: unknown class n00001740"),
        ("a 1 2\n", False, "line 1: expected `NAME LABEL`"),
        ("a 1\na.JPEG 2\n", False, "line 2: image a is listed twice"),
    ],
)
def test_bad_imagenet_labels(text: str | None, meta: bool, reason: str, flat: Path) -> None:
    with pytest.raises(MmrepError, match=reason):
        flat_labels(flat, text, meta)


def test_imagenet_files_and_labels_must_match(flat: Path) -> None:
    put(flat / "val/other.JPEG", picture(1))
    (flat / "val/ILSVRC2012_val_00000002.JPEG").unlink()
    contents = read_imagenet_val(flat / "val", flat / "val.txt", "test")
    assert said(contents) == ["ILSVRC2012_val_00000002: no such file", "other.JPEG: no label in val.txt"]
    with pytest.raises(DataError, match="label 2, but there are 2 class names"):
        read_imagenet_val(flat / "val", flat / "val.txt", "test", classnames=str(put(flat / "names.txt", "a\nb\n")))
    with pytest.raises(DataError, match=r"not the devkit's meta\.mat"):
        read_imagenet_val(
            flat / "val", flat / "val.txt", "test", devkit_meta=put(flat / "x.mat", "nothing of the kind")
        )
    with pytest.raises(ConfigError, match=r"can't read .*none\.mat"):
        read_imagenet_val(flat / "val", flat / "val.txt", "test", devkit_meta=flat / "none.mat")
