"""DataComp's subsets: the rows that a brute-force search finds; other files and samples refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_tar

from mmrep.config.checks import ConfigError
from mmrep.data.indexing import build_index
from mmrep.data.subsets import UID, parse_uid, read_subset, select, shard_uids
from mmrep.data.tar import DataError


def uids_of(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, dtype=UID)


def test_parse() -> None:
    assert parse_uid("00000000000000ff8000000000000001") == (255, 2**63 + 1)
    assert parse_uid("F" * 32) == (2**64 - 1, 2**64 - 1)
    for text in ("", "f" * 31, "f" * 33, "g" * 32, "0x" + "f" * 30, "+" + "f" * 31, "f" * 32 + "\n", "١" * 32):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            parse_uid(text)


@pytest.mark.parametrize("values", [3, 2**64 - 1])
def test_select_is_what_brute_force_finds(values: int) -> None:
    """Few values: equal halves everywhere; all of them: the whole range of 64 bits, past the signed one too."""
    rng = np.random.default_rng(values % 7)
    for size in (1, 2, 17, 200):
        pool = rng.integers(0, values, (60, 2), dtype=np.uint64, endpoint=True)
        picked = rng.integers(0, values, (size, 2), dtype=np.uint64, endpoint=True)
        picked[::2] = pool[rng.integers(0, 60, len(picked[::2]))]
        uids, subset = (uids_of([tuple(row) for row in rows.tolist()]) for rows in (pool, picked))
        kept = set(subset.tolist())
        expected = [row for row, uid in enumerate(uids.tolist()) if uid in kept]
        found = select(uids, np.sort(subset))
        assert found.tolist() == expected and found.dtype == np.int64 and expected
    nothing = select(uids_of([]), np.sort(subset))
    assert nothing.dtype == np.int64 and len(nothing) == 0


def test_read_sorted_and_unsorted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    uids = uids_of([tuple(row) for row in rng.integers(0, 4, (50, 2)).tolist()] + [(2**64 - 1, 0), (2**63, 5)])
    np.save(tmp_path / "unsorted.npy", uids)
    np.save(tmp_path / "sorted.npy", np.sort(uids))
    np.save(tmp_path / "halves.npy", uids_of([(2, 0), (1, 5)]))
    assert read_subset(tmp_path / "halves.npy").tolist() == [(1, 5), (2, 0)]
    expected = sorted(uids.tolist())
    for name, mapped in {"unsorted": False, "sorted": True}.items():
        read = read_subset(tmp_path / f"{name}.npy")
        assert read.tolist() == expected and (isinstance(read, np.memmap) and read.base is not None) == mapped


def test_order_is_checked_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmrep.data.subsets._CHUNK", 4)
    for swap in range(11):
        uids = uids_of([(i // 3, i) for i in range(12)])
        uids[[swap, swap + 1]] = uids[[swap + 1, swap]]
        np.save(tmp_path / "s.npy", uids)
        assert read_subset(tmp_path / "s.npy").tolist() == sorted(uids.tolist())


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(3, dtype=np.uint64), r"expected uids .*, got uint64 \(3,\)"),
        (np.zeros((2, 2), dtype=UID), r".*got .*\(2, 2\)"),
        (np.zeros(3, dtype="i8,i8"), ".*got .*<i8"),
        (np.zeros(3, dtype=">u8,>u8"), ".*got .*>u8"),
        (np.zeros(0, dtype=UID), "no uids in it"),
        (np.array([{}]), "not an .npy array of uids"),
    ],
)
def test_other_arrays(array: np.ndarray, reason: str, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError, match=rf"s\.npy: {reason}"):
        read_subset(tmp_path / "s.npy")


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.npy: No such file"):
        read_subset(tmp_path / "none.npy")
    for content in (b"", b"\x93NUMPY", b"uid\n" * 9):
        (tmp_path / "s.npy").write_bytes(content)
        with pytest.raises(ConfigError, match=r"s\.npy: not an \.npy array"):
            read_subset(tmp_path / "s.npy")
    np.savez(tmp_path / "s.npz", uids=np.zeros(3, dtype=UID))
    with pytest.raises(ConfigError, match=r"s\.npz: .* got an archive"):
        read_subset(tmp_path / "s.npz")


def test_uids_of_a_shard(tmp_path: Path) -> None:
    samples = [(str(i), {"json": json.dumps({"uid": f"{i:016x}{2**64 - 1 - i:016X}"}).encode()}) for i in range(5)]
    index = build_index(write_tar(tmp_path / "0.tar", samples))
    assert shard_uids(index).tolist() == [(i, 2**64 - 1 - i) for i in range(5)]
    assert select(shard_uids(index), uids_of([(1, 2**64 - 2), (4, 0), (4, 2**64 - 5)])).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ({"json": {"url": "x"}}, "no key 'uid'"),
        ({"json": {"uid": None}}, "got 'None'"),
        ({"json": {"uid": "abc"}}, "expected a uid of 32 hexadecimal digits, got 'abc'"),
        ({"json": []}, "member 'json': "),
        ({"txt": {}}, "has no member 'json'"),
    ],
)
def test_samples_without_uid(member: dict[str, Any], reason: str, tmp_path: Path) -> None:
    samples = [("a", {"json": b'{"uid": "' + b"0" * 32 + b'"}'})]
    samples.append(("b", {extension: json.dumps(content).encode() for extension, content in member.items()}))
    index = build_index(write_tar(tmp_path / "0.tar", samples))
    with pytest.raises(DataError, match=rf"0\.tar: sample 'b'.*{reason}"):
        shard_uids(index)
