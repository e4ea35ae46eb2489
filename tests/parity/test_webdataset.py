"""Our index against webdataset's own reader, over tars that webdataset's own writer wrote."""

import io
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from mmrep.data.indexing import build_index
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.tar import split_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import webdataset as wds
    from webdataset.tariterators import base_plus_ext

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves shards open

NAMES = [
    "000.jpg",
    "000.seg.png",
    "000.JPG",
    "a/b/000.jpg",
    "a.b/c.d/000.e.txt",
    "./x.txt",
    "/abs/x.txt",
    "with space/y z.txt",
    "ünï/ç.txt",
    "a..txt",
    "a/.b.c/d.txt",
]


def theirs(path: Path) -> list[tuple[str, dict[str, bytes]]]:
    """Keys and members as webdataset groups them."""
    pipeline = wds.DataPipeline(wds.SimpleShardList([str(path)]), wds.tarfile_to_samples())
    return [
        (sample["__key__"], {e: data for e, data in sample.items() if not e.startswith("__")}) for sample in pipeline
    ]


def ours(index: ShardIndex) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (key.decode(), {e: read_member(index, row, e) for e, places in index.members.items() if places[row, 0] >= 0})
        for row, key in enumerate(index.keys.tolist())
    ]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_split_alike(name: str) -> None:
    key, extension = base_plus_ext(name)
    assert split_name(name) == (key, extension.lower())


def test_samples_of_a_tar_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    samples: list[dict[str, Any]] = [
        {"__key__": "000", "txt": "one", "jpg": b"\xff\xd8", "json": {"a": 1}},
        {"__key__": "folder.v1/001", "txt": "two", "cls": 3},
        {"__key__": "folder.v1/002", "seg.png": b"x" * 2000, "txt": ""},
        {"__key__": "deep/" * 30 + "003", "txt": "long name"},
        {"__key__": "ünï/004", "txt": "ç"},
    ]
    with wds.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    index = build_index(path)
    assert sorted(ours(index)) == sorted(theirs(path))
    assert [key for key, _ in ours(index)] == [sample["__key__"] for sample in samples]


def test_odd_members_are_grouped_alike(tmp_path: Path) -> None:
    """Folders, metadata, upper case, keys that share a beginning."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("__index__", "d", "d/1.TXT", "d/1.cls", "d/10.txt", "e/1.txt", "1.txt", "1.a.b.txt"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name == "d" else tarfile.REGTYPE
            data = b"" if name == "d" else name.encode()
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert ours(build_index(path)) == theirs(path)
