"""Inventories: each way in which shards can differ is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_tar

from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.inventory import name_difference, write_inventory
from mmrep.data.sources import Sources


def shard(path: Path, count: int = 3, text: bytes = b"x") -> Path:
    return write_tar(path, [(f"{i:03d}", {"txt": text}) for i in range(count)])


def sources(*patterns: str) -> Sources:
    return Sources(DataConfig([SourceConfig(pattern) for pattern in patterns]))


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """A set of five shards whose inventory was written."""
    for i in range(5):
        shard(tmp_path / f"set/{i}.tar")
    write_inventory(sources(f"{tmp_path}/set"), tmp_path / "shards.tsv")
    return tmp_path


def test_a_line_for_each_shard(noted: Path) -> None:
    lines = (noted / "shards.tsv").read_text().splitlines()
    digest = sources(f"{noted}/set").catalog.digests[0].decode()
    assert len(lines) == 5 and lines[0] == f"0/0.tar\t3\t{digest}"
    assert sorted(file.name for file in noted.iterdir()) == ["set", "shards.tsv"], "nothing temporary is left"


def test_no_difference(noted: Path) -> None:
    assert name_difference(noted / "shards.tsv", sources(f"{noted}/set")) == ""
    (noted / "set").rename(noted / "moved")
    assert name_difference(noted / "shards.tsv", sources(f"{noted}/moved")) == ""
    assert name_difference(noted / "gone.tsv", sources(f"{noted}/moved")) == "", "nobody knows"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "2.tar").unlink(), "0/2.tar is gone"),
        (lambda folder: shard(folder / "7.tar"), "0/7.tar is new"),
        (lambda folder: shard(folder / "1.tar", 4), "0/1.tar had 3 samples, has 4"),
        (lambda folder: shard(folder / "1.tar", text=b"xy"), "0/1.tar has other members"),
        (lambda folder: (folder / "1.tar").rename(folder / "8.tar"), "0/1.tar is gone; 0/8.tar is new"),
    ],
)
def test_each_difference_is_named(change: Callable[[Path], object], expected: str, noted: Path) -> None:
    change(noted / "set")
    assert name_difference(noted / "shards.tsv", sources(f"{noted}/set")) == expected


def test_another_order(noted: Path) -> None:
    now = sources(f"{noted}/set/{{1,0,2,3,4}}.tar")
    assert name_difference(noted / "shards.tsv", now) == "the order of the shards has changed"


def test_another_source(noted: Path) -> None:
    now = sources(f"{noted}/set/{{0..3}}.tar", f"{noted}/set/4.tar")
    assert name_difference(noted / "shards.tsv", now) == "0/4.tar is gone; 1/4.tar is new"


def test_many_differences_are_counted(noted: Path) -> None:
    for i in range(5):
        shard(noted / f"set/{i}.tar", 4)
    found = name_difference(noted / "shards.tsv", sources(f"{noted}/set"))
    assert found.count("had 3 samples, has 4") == 3 and found.endswith("; 0/2.tar had 3 samples, has 4 and 2 more")


@pytest.mark.parametrize("which", ["a", "b"])
def test_shards_of_one_name_in_two_folders(which: str, tmp_path: Path) -> None:
    patterns = [str(shard(tmp_path / folder / "0.tar")) for folder in ("a", "b")]

    def now() -> Sources:
        return Sources(DataConfig([SourceConfig(patterns)]))

    write_inventory(now(), tmp_path / "shards.tsv")
    assert name_difference(tmp_path / "shards.tsv", now()) == ""
    shard(tmp_path / which / "0.tar", 9)
    number = "" if which == "a" else " (number 2 of that name)"
    assert name_difference(tmp_path / "shards.tsv", now()) == f"0/0.tar{number} had 3 samples, has 9"


def test_odd_names(tmp_path: Path) -> None:
    for name in ("tab\there", "line\x0bbreak", "größe 10%"):
        shard(tmp_path / f"set/{name}.tar")
    write_inventory(sources(f"{tmp_path}/set"), tmp_path / "shards.tsv")
    assert name_difference(tmp_path / "shards.tsv", sources(f"{tmp_path}/set")) == ""


def test_a_new_inventory_takes_the_place_of_the_old(noted: Path) -> None:
    shard(noted / "set/1.tar", 4)
    write_inventory(sources(f"{noted}/set"), noted / "shards.tsv")
    assert name_difference(noted / "shards.tsv", sources(f"{noted}/set")) == ""
