"""Selections: the rows of a subset, found once, kept in the cache, apart for each split."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data import subsets
from mmrep.data.sources import Sources
from mmrep.data.subsets import UID, shard_uids

SHARDS = 4
EACH = 25


def uid(number: int) -> tuple[int, int]:
    return number * 0x9E3779B97F4A7C15 % 2**64, number


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SHARDS shards of EACH samples whose json members have uids; a cache of its own."""
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    for shard in range(SHARDS):
        numbers = range(shard * EACH, (shard + 1) * EACH)
        samples = [
            (f"{n:04d}", {"txt": b"x", "json": json.dumps({"uid": "{:016x}{:016x}".format(*uid(n))}).encode()})
            for n in numbers
        ]
        write_tar(tmp_path / f"set/{shard}.tar", samples)
    return tmp_path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards whose uids were read."""
    names: list[str] = []

    def counted(index: Any) -> Any:
        names.append(index.path.name)
        return shard_uids(index)

    monkeypatch.setattr(subsets, "shard_uids", counted)
    return names


def subset(folder: Path, numbers: list[int], name: str = "s") -> str:
    np.save(folder / f"{name}.npy", np.array([uid(n) for n in numbers], dtype=UID))
    return str(folder / f"{name}.npy")


def chosen(folder: Path, place: str | None, fraction: float = 0.0) -> Sources:
    return Sources(DataConfig([SourceConfig(f"{folder}/set", subset=place)], ValidationConfig(fraction=fraction)))


def numbers_of(sources: Sources) -> list[int]:
    found = [sources.sample(n) for n in range(len(sources))]
    return [int(sample.shard.keys[sample.row]) for sample in found]


def test_only_the_subset_is_trained_on(folder: Path) -> None:
    wanted = [3, 99, 26, 24, 27, 3, 1000]
    sources = chosen(folder, subset(folder, wanted))
    assert numbers_of(sources) == [3, 24, 26, 27, 99]
    assert sources.counts.tolist() == [2, 2, 0, 1]
    assert sources.catalog.samples.tolist() == [EACH] * SHARDS


def test_a_random_subset(folder: Path) -> None:
    wanted = np.random.default_rng(0).permutation(SHARDS * EACH)[:60].tolist()
    assert numbers_of(chosen(folder, subset(folder, wanted))) == sorted(wanted)


def test_rows_of_one_shard(folder: Path) -> None:
    (selection,) = chosen(folder, subset(folder, [3, 99, 26, 24, 27])).selections
    assert selection is not None
    assert [selection.rows(shard).tolist() for shard in range(SHARDS)] == [[3, 24], [1, 2], [], [24]]
    assert isinstance(selection.all_rows, np.memmap), "not held in memory"


def test_it_is_found_once(folder: Path, read: list[str]) -> None:
    place = subset(folder, [1, 30, 60])
    first = chosen(folder, place)
    assert sorted(read) == [f"{shard}.tar" for shard in range(SHARDS)]
    again = chosen(folder, place)
    same_uids = chosen(folder, subset(folder, [60, 1, 30], "shuffled"))
    assert len(read) == SHARDS, "read once: the cache knows the uids, not the file's name or order"
    assert numbers_of(again) == numbers_of(same_uids) == numbers_of(first) == [1, 30, 60]
    assert again.digest() == same_uids.digest() == first.digest()
    left = [file.suffixes for file in (folder / "cache/selections").iterdir()]
    assert left == [[".npy"]], "nothing temporary is left"


def test_other_uids_or_shards_are_looked_for_anew(folder: Path, read: list[str]) -> None:
    chosen(folder, subset(folder, [1, 30, 60]))
    assert numbers_of(chosen(folder, subset(folder, [1, 30, 61]))) == [1, 30, 61]
    assert len(read) == 2 * SHARDS
    (folder / "set/3.tar").unlink()
    assert numbers_of(chosen(folder, subset(folder, [1, 30, 61]))) == [1, 30, 61]
    assert len(read) == 3 * SHARDS - 1


@pytest.mark.parametrize("damage", [np.array([1, 1, 1, 0, 5], np.int32), np.zeros(2, np.int32), np.zeros((4, 2)), None])
def test_a_damaged_selection_in_the_cache_is_made_anew(folder: Path, read: list[str], damage: Any) -> None:
    place = subset(folder, [1, 30, 60])
    chosen(folder, place)
    (known,) = (folder / "cache/selections").iterdir()
    if damage is None:
        known.write_bytes(known.read_bytes()[:-4])
    else:
        np.save(known, damage)
    assert numbers_of(chosen(folder, place)) == [1, 30, 60] and len(read) == 2 * SHARDS


def test_held_out_samples_are_not_selected(folder: Path, read: list[str]) -> None:
    place = subset(folder, list(range(0, SHARDS * EACH, 2)))
    split = chosen(folder, place, fraction=0.3)
    held = {int(sample.shard.keys[sample.row]) for sample in split.held_out(1000)}
    plain = {int(sample.shard.keys[sample.row]) for sample in chosen(folder, None, 0.3).held_out(1000)}
    assert held == plain and held & set(range(0, 100, 2)), "the split is that of the whole set"
    assert numbers_of(split) == sorted(set(range(0, 100, 2)) - held)
    assert numbers_of(chosen(folder, place, fraction=0.3)) == numbers_of(split) and len(read) == SHARDS
    assert numbers_of(chosen(folder, place)) == list(range(0, 100, 2)), "another fraction, another selection"
    assert len(read) == 2 * SHARDS


def test_the_digest_of_sources_tells_subsets_apart(folder: Path) -> None:
    digests = [chosen(folder, place).digest() for place in (None, subset(folder, [1, 30, 60]))]
    digests.append(chosen(folder, subset(folder, [2, 30, 60])).digest())  # as many of each shard
    digests.append(chosen(folder, subset(folder, [1, 30, 60]), 0.3).digest())
    assert len(set(digests)) == 4


def test_two_sources_have_their_own(folder: Path) -> None:
    first, second = subset(folder, [1, 30], "a"), subset(folder, [60, 99], "b")
    both = [
        SourceConfig(f"{folder}/set/{{0,1}}.tar", subset=first),
        SourceConfig(f"{folder}/set/{{2,3}}.tar", subset=second),
    ]
    assert numbers_of(Sources(DataConfig(both))) == [1, 30, 60, 99]
    with_all = [both[0], SourceConfig(f"{folder}/set/3.tar")]
    assert numbers_of(Sources(DataConfig(with_all))) == [1, 30, *range(75, 100)]


def test_a_subset_of_nothing_is_refused(folder: Path) -> None:
    for _ in range(2):  # found now, then in the cache
        with pytest.raises(ConfigError, match=r"subset \S+s\.npy: none of its 2 uids is in the shards"):
            chosen(folder, subset(folder, [500, 501]))


def test_a_subset_that_is_all_held_out_is_refused(folder: Path) -> None:
    held = chosen(folder, None, 0.3).held_out(1)[0]
    number = int(held.shard.keys[held.row])
    with pytest.raises(ConfigError):
        chosen(folder, subset(folder, [number]), 0.3)


def test_a_cache_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen(folder, None)
    (folder / "cache/selections").write_text("a file where a folder should be")
    with pytest.raises(ConfigError, match=r"selections/\S+: .*; MMREP_CACHE moves the cache"):
        chosen(folder, subset(folder, [1]))
