"""Caches that several processes use for the first time at once."""

import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.decoded import DecodedImages
from mmrep.data.files import read_arrays, write_arrays
from mmrep.data.pairs import keep_decoded
from mmrep.data.sources import Sources

SIZES = (np.full(3, 4, np.int32), np.full(3, 4, np.int32))


def test_making_room_spares_what_others_are_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of sizes is written into the folder of decoded images before their lock is taken."""
    save = np.savez

    def interrupted(*args: Any, **arrays: Any) -> None:
        save(*args, **arrays)
        assert DecodedImages.open(tmp_path, "another", SIZES, 1 << 20) is not None

    monkeypatch.setattr(np, "savez", interrupted)
    place = tmp_path / "set.sizes.npz"
    write_arrays({"heights": SIZES[0]}, place)
    assert read_arrays(place.read_bytes()) is not None


def test_making_room_removes_what_a_killed_process_was_making(tmp_path: Path) -> None:
    left = tmp_path / ".writing-set.pixels-0123"
    left.write_bytes(b"half")
    assert DecodedImages.open(tmp_path, "another", SIZES, 1 << 20) is not None
    assert not left.exists()


def test_first_uses_of_one_cache_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))
    for shard in range(3):
        write_tar(tmp_path / f"train/{shard}.tar", colour_samples(4, 4 * shard))
    config = DataConfig([SourceConfig(str(tmp_path / "train"))], decoded_gb=0.001)
    context = multiprocessing.get_context("fork")
    together = context.Barrier(6)

    def use() -> None:
        together.wait(60)
        sources = Sources(config)
        assert keep_decoded(sources, config) is not None and len(sources) == 12

    processes = [context.Process(target=use) for _ in range(6)]
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # fork beside torch's threads
        for process in processes:
            process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 6
    assert not list((tmp_path / "cache").rglob(".writing-*"))
