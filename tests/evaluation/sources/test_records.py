"""What tells samples apart: a digest that copies share, and an identity that no other file has."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tar

from mmrep.data.indexing import load_index
from mmrep.data.layouts.contents import Item
from mmrep.data.remote import ShardCache
from mmrep.data.shards import RemoteShard, ShardIndex
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.ground_truth import GroundTruth, InstanceRecords
from mmrep.evaluation.sources.pairs import Pair, PairRecords
from mmrep.evaluation.sources.records import FileRecords, Records, ShardRecords


def sharded(folder: Path, index: ShardIndex | None = None) -> ShardRecords:
    if not (folder / "0.tar").exists():
        write_tar(folder / "0.tar", [("a", {"png": (folder / "a.png").read_bytes(), "txt": b"a"})])
        os.utime(folder / "0.tar", (1000, 1000))
    return ShardRecords([(index or load_index(folder / "0.tar"), 0)], "txt")


KINDS: dict[str, Callable[[Path], Records]] = {
    "files": lambda folder: FileRecords(folder, [Item("a.png", "test", label=0)]),
    "instances": lambda folder: InstanceRecords(GroundTruth((), ()), [("a", folder / "a.png", None)]),
    "pairs": lambda folder: PairRecords([Pair("a", folder / "a.png", ("x", "y"))]),
    "shards": sharded,
}


def folder_of(place: Path, content: bytes) -> Path:
    place.mkdir()
    (place / "a.png").write_bytes(content)
    os.utime(place / "a.png", (1000, 1000))
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_other_bytes_of_the_same_name_size_and_time_have_another_identity(kind: str, tmp_path: Path) -> None:
    one, two = (KINDS[kind](folder_of(tmp_path / name, name.encode())) for name in ("x", "y"))
    assert one.digest() == two.digest() and one.identity() != two.identity()
    assert one.identity() == KINDS[kind](tmp_path / "x").identity()
    file, before = tmp_path / "x" / ("0.tar" if kind == "shards" else "a.png"), one.identity()
    stat, data = file.stat(), file.read_bytes()
    while file.stat().st_ctime_ns == stat.st_ctime_ns:  # the clock of file systems is coarse
        file.write_bytes(data[::-1])
        os.utime(file, (1000, 1000))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert one.identity() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone(kind: str, tmp_path: Path) -> None:
    records = KINDS[kind](folder_of(tmp_path / "x", b"x"))
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(DataError, match="No such file"):
        records.identity()


def test_folders_reached_by_a_link_are_the_same(tmp_path: Path) -> None:
    records = KINDS["files"](folder_of(tmp_path / "x", b"x"))
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert KINDS["files"](tmp_path / "link").identity() == records.identity()


def test_checksums_stand_for_the_place(tmp_path: Path) -> None:
    def identity(name: str, crc: int) -> str:
        index = sharded(tmp_path / name).samples[0][0]
        crcs = {"png": np.array([crc], dtype=np.uint32)}
        return sharded(tmp_path / name, dataclasses.replace(index, crcs=crcs)).identity()

    for name in "xy":
        folder_of(tmp_path / name, b"x")
    assert identity("x", 1) == identity("y", 1) != identity("x", 2)


def test_remote_shards_are_told_apart_by_address_version_and_size(tmp_path: Path) -> None:
    index, cache = sharded(folder_of(tmp_path / "x", b"x")).samples[0][0], ShardCache(tmp_path / "cache", 1000)
    facts = [("memory://a", 10, 1), ("memory://b", 10, 1), ("memory://a", 11, 1), ("memory://a", 10, 2)]
    places = [RemoteShard(address, cache, size=size, version=version) for address, size, version in facts]
    found = [sharded(tmp_path / "x", dataclasses.replace(index, path=place)) for place in places]
    assert len({each.identity() for each in found}) == 4 and len({each.digest() for each in found}) == 1
