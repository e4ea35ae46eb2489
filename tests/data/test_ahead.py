"""What is asked for ahead follows the blocks, in the order of use, within the cache's room."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from conftest import colour_samples, write_tar

from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data import ahead
from mmrep.data.ahead import Ahead, Request
from mmrep.data.loader import Phase, Plan, Steps
from mmrep.data.sources import Sources
from mmrep.model.text_encoder import ClipTokenizer

SHARDS, SAMPLES, BATCH = 8, 6, 4
SIZE = 10240
"""Bytes of a shard: tar files are padded to that."""


class Recorder:
    """Stands in for the prefetcher and notes the requests."""

    made: ClassVar[list[Any]] = []

    def __init__(self, cache: Any, threads: int) -> None:
        self.cache, self.lists, self.closed = cache, [], False
        Recorder.made.append(self)

    def fetch(self, requests: Sequence[Request]) -> None:
        self.lists.append(list(requests))

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "made", [])
    monkeypatch.setattr(ahead, "Prefetcher", Recorder)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The same shards in a folder and in fsspec's memory."""
    folder = tmp_path_factory.mktemp("ahead")
    memory = fsspec.filesystem("memory")
    for i in range(SHARDS):
        samples = [(key, {"txt": members["txt"]}) for key, members in colour_samples(SAMPLES, SAMPLES * i)]
        shard = write_tar(folder / f"{i}.tar", samples)
        assert shard.stat().st_size == SIZE
        memory.pipe(f"/ahead/{i}.tar", shard.read_bytes())
    yield {"local": str(folder), "remote": "memory://ahead"}
    memory.rm("/ahead", recursive=True)


@pytest.fixture
def build(places: dict[str, str], tmp_path: Path) -> Callable[..., Steps]:
    """`build("{remote}/{0..7}.tar", block=12, room=100)`: batches of shards, a cache with room for so many of them."""

    def make(*shards: str, weights: Sequence[float | None] = (None,), room: float = 100, **fields: Any) -> Steps:
        train = [
            SourceConfig(text.replace("{remote}", places["remote"]).replace("{local}", places["local"]), weight=weight)
            for text, weight in zip(shards, weights * len(shards) if len(weights) == 1 else weights, strict=True)
        ]
        config = DataConfig(train, cache_dir=str(tmp_path / "cache"), cache_gb=room * SIZE / 2**30, **fields)
        plan = Plan(seed=1, global_batch=BATCH, steps=100, phases=(Phase(0, (8, 8), (4, 4)),))
        return Steps(Sources(config), config, ClipTokenizer(8), plan, 0, 1)

    return make


def names(requests: Sequence[Request]) -> list[str]:
    return [address.rpartition("/")[2].removesuffix(".tar") for address, *_ in requests]


def used(steps: Steps, first: int, last: int) -> set[str]:
    """The shards from which steps first, …, last - 1 take their samples."""
    groups, positions = steps.order.slots(first * BATCH, (last - first) * BATCH)
    shards = [
        steps.sources.sample(steps.sources.starts[group] + position).shard.path.name
        for group, position in zip(groups.tolist(), positions.tolist(), strict=True)
    ]
    return {name.removesuffix(".tar") for name in shards}


def test_want_lists_follow_the_blocks(build: Callable[..., Steps]) -> None:
    steps = build("{remote}/{0..7}.tar", shuffle_block=12)  # two shards a block, three steps; four blocks an epoch
    watcher = Ahead(steps)
    for step in range(24):
        watcher.advance(step)
    (recorder,) = Recorder.made
    assert recorder.cache is steps.sources.cache
    lists = recorder.lists
    assert len(lists) == 8, "one list a block, nothing between"
    for block, requests in enumerate(lists):
        found = names(requests)
        assert set(found[:2]) == used(steps, 3 * block, 3 * block + 3), "the present block first"
        assert set(found) == used(steps, 3 * block, 3 * block + 6), "then the next one, across epochs too"
        assert len(found) == len(set(found))
    assert set(lists[0]) <= {(f"memory://ahead/{i}.tar", SIZE, 0) for i in range(SHARDS)}
    watcher.close()
    assert recorder.closed


def test_a_resumed_run_begins_with_its_own_block(build: Callable[..., Steps]) -> None:
    steps = build("{remote}/{0..7}.tar", shuffle_block=12)
    Ahead(steps).advance(10)
    (requests,) = Recorder.made[0].lists
    assert set(names(requests)[:2]) == used(steps, 9, 12)


def test_every_source_comes_before_any_next_block(build: Callable[..., Steps]) -> None:
    steps = build("{remote}/{0..3}.tar", "{remote}/{4..7}.tar", weights=(3, 1), shuffle_block=12, room=4.5)
    Ahead(steps).advance(0)
    found = names(Recorder.made[0].lists[0])
    assert len(found) == 4, "as much as fits"
    present = [int(name) for name in found]
    assert sum(shard < 4 for shard in present) == 2, "two of each source: the present blocks"
    assert used(steps, 0, 3) <= set(found)


def test_a_whole_source_in_one_block_is_asked_for_once(build: Callable[..., Steps]) -> None:
    watcher = Ahead(build("{remote}/{0..7}.tar", room=8))
    for step in range(30):  # two and a half epochs
        watcher.advance(step)
    (requests,) = Recorder.made[0].lists
    assert names(requests) == [str(i) for i in range(SHARDS)]


def test_no_more_than_the_cache_takes(build: Callable[..., Steps], caplog: pytest.LogCaptureFixture) -> None:
    steps = build("{remote}/{0..7}.tar", shuffle_block=24, room=5.5)
    with caplog.at_level(logging.WARNING, "mmrep"):
        Ahead(steps).advance(0)
    found = names(Recorder.made[0].lists[0])
    assert len(found) == 5
    assert used(steps, 0, 6) == set(found[:4])
    assert not caplog.records, "the block itself fits"


def test_a_block_larger_than_the_cache_is_said(build: Callable[..., Steps], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmrep"):
        Ahead(build("{remote}/{0..7}.tar", shuffle_block=24, room=3)).advance(0)
    assert len(Recorder.made[0].lists[0]) == 3
    (message,) = caplog.messages
    block, room = (f"{shards * SIZE / 2**30:.3g}" for shards in (4, 3))
    assert message == (
        f"the shards that are shuffled together take {block} GB, data.cache_gb is {room}: each will be downloaded "
        "many times; raise it, or lower data.shuffle_block"
    )


def test_local_shards_are_not_asked_for(build: Callable[..., Steps], caplog: pytest.LogCaptureFixture) -> None:
    watcher = Ahead(build("{local}", room=0.1))
    watcher.advance(0)
    watcher.close()
    assert Recorder.made == []
    assert not caplog.records


def test_local_shards_take_no_room(build: Callable[..., Steps], caplog: pytest.LogCaptureFixture) -> None:
    steps = build("{local}/{0..3}.tar", "{remote}/{4..7}.tar", room=4)
    with caplog.at_level(logging.WARNING, "mmrep"):
        Ahead(steps).advance(0)
    assert names(Recorder.made[0].lists[0]) == ["4", "5", "6", "7"]
    assert not caplog.records


def test_staged_shards_are_asked_for(build: Callable[..., Steps], places: dict[str, str]) -> None:
    Ahead(build("{local}", stage=True)).advance(0)
    shards = [Path(places["local"]) / f"{i}.tar" for i in range(SHARDS)]
    expected = [(f"file://{shard}", SIZE, shard.stat().st_mtime_ns) for shard in shards]
    assert Recorder.made[0].lists == [expected]


def test_shards_without_samples_to_train_on_are_not_asked_for(build: Callable[..., Steps], tmp_path: Path) -> None:
    for i in range(40):
        write_tar(tmp_path / "single" / f"{i:02d}.tar", [("only", {"txt": b"x"})])
    steps = build(f"{tmp_path}/single", stage=True, shuffle_block=10, validation=ValidationConfig(fraction=0.5))
    left = {f"{i:02d}" for i in range(40) if steps.sources.counts[i]}
    assert 10 <= len(left) < 30
    watcher = Ahead(steps)
    for step in range(len(left) // BATCH + 1):
        watcher.advance(step)
    assert {name for requests in Recorder.made[0].lists for name in names(requests)} == left
