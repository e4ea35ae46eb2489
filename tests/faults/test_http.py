"""Downloads over real HTTP from a server that stalls, truncates, fails, lies and changes its mind."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from mmrep.config.checks import ConfigError
from mmrep.data.remote import ShardCache, expand_remote, read_remote, remote_size
from mmrep.data.remote.download import Policy
from mmrep.data.tar import DataError

QUICK = Policy(retries=3, timeout=20.0, backoff=0.01)
DATA = random.Random(0).randbytes(1 << 21)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.files["/a.tar"] = DATA
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 1 << 24, QUICK)


def leftovers(tmp_path: Path) -> list[str]:
    """Files of the cache that are no copies."""
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    return [name for name in names if name.startswith(".") and name != ".lock"]


def test_a_copy_is_what_the_server_has(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    with cache.open(f"{server.url}/a.tar") as held:
        assert held.path.read_bytes() == os.pread(held.descriptor, len(DATA), 0) == DATA
        assert held.path.parent == tmp_path / "cache"
        assert held.path.name.endswith("-a.tar")
    cache.open(f"{server.url}/a.tar", len(DATA)).close()
    assert server.requests["/a.tar"] == 1
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    "fault",
    [
        {"truncate": 1 << 19, "times": 2},
        {"status": 500, "times": 3},
        {"status": 503, "times": 1},
        {"status": 429, "times": 1},
        {"lie": 5, "times": 1},
        {"lie": -5, "times": 1},
        {"truncate": 1 << 20, "no_ranges": True, "times": 1},
        {"no_length": True},
        {"no_length": True, "truncate": 1 << 19, "times": 1},
    ],
    ids=str,
)
def test_what_passes_is_overcome(server: Server, cache: ShardCache, tmp_path: Path, fault: dict[str, Any]) -> None:
    server.faults["/a.tar"] = fault
    with cache.open(f"{server.url}/a.tar", len(DATA)) as held:
        assert held.path.read_bytes() == DATA
    assert server.requests["/a.tar"] == fault.get("times", 0) + 1
    assert leftovers(tmp_path) == []


def test_a_stall_is_given_up_and_the_rest_fetched(server: Server, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1 << 24, Policy(retries=8, timeout=1.0, backoff=0.01))
    server.faults["/a.tar"] = {"stall": 1 << 20, "times": 1}
    with cache.open(f"{server.url}/a.tar") as held:
        assert held.path.read_bytes() == DATA
    assert ("/a.tar", f"bytes={1 << 20}-") in server.ranges


def test_a_broken_download_goes_on_where_it_broke(server: Server, cache: ShardCache) -> None:
    server.faults["/a.tar"] = {"truncate": 1 << 20, "times": 1}
    cache.open(f"{server.url}/a.tar").close()
    first, second = (wanted for _, wanted in server.ranges)
    assert first is None
    # aiohttp gives no bytes that it had not handed on when the connection broke.
    assert second is not None
    assert 1 << 19 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1 << 20
    assert server.sent["/a.tar"] < 1.3 * len(DATA)


@pytest.mark.parametrize(
    ("length", "no_tag"), [(len(DATA), False), (len(DATA) // 2, False), (len(DATA) - 9, True), (99, True)]
)
def test_content_that_changes_meanwhile_is_not_mixed(
    server: Server, cache: ShardCache, length: int, no_tag: bool
) -> None:
    new = random.Random(1).randbytes(length)

    def swap(_: int) -> None:
        server.files["/a.tar"] = new

    server.faults["/a.tar"] = {"truncate": 1 << 20, "times": 1, "after": swap, "no_tag": no_tag}
    with cache.open(f"{server.url}/a.tar") as held:
        assert held.path.read_bytes() == new


def test_last_retry_says_how_far_it_came(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    server.faults["/a.tar"] = {"truncate": 0}
    message = r"/a\.tar: gave up after 4 attempts, 0 of 2,097,152 bytes got: .*"
    with pytest.raises(DataError, match=message) as caught:
        cache.open(f"{server.url}/a.tar")
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []
    server.faults["/a.tar"] = {"stall": 0}
    with pytest.raises(DataError, match=r"gave up after 1 attempts?, 0 of .* bytes got: no byte for 0\.3 s"):
        ShardCache(tmp_path / "cache", 1 << 24, Policy(retries=0, timeout=0.3)).open(f"{server.url}/a.tar")


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "no such file"),
        (403, r"the server answered 403 Forbidden \(credentials are .*\)"),
        (401, "401"),
        (410, "410"),
    ],
)
def test_what_lasts_is_not_retried(server: Server, cache: ShardCache, status: int, reason: str) -> None:
    server.faults["/a.tar"] = {"status": status}
    with pytest.raises(DataError, match=rf"/a\.tar: .*{reason}"):
        cache.open(f"{server.url}/a.tar")
    assert server.requests["/a.tar"] == 1


def test_wrong_size(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    url = f"{server.url}/a.tar"
    with pytest.raises(DataError, match=r"after 4 attempts, .*: the file has 2,097,152 bytes, expected 7$"):
        cache.open(url, 7)
    assert leftovers(tmp_path) == []


def test_a_copy_of_another_size_is_fetched_anew(server: Server, cache: ShardCache) -> None:
    cache.open(f"{server.url}/a.tar").close()
    server.files["/a.tar"] = DATA[:1000]
    with cache.open(f"{server.url}/a.tar") as old:
        assert old.path.stat().st_size == len(DATA)
        with cache.open(f"{server.url}/a.tar", 1000) as held:
            assert held.path.read_bytes() == DATA[:1000]
        assert os.pread(old.descriptor, len(DATA), 0) == DATA


def test_no_secret_in_messages_and_names(server: Server, cache: ShardCache, tmp_path: Path) -> None:
    base = server.url.replace("//", "//user:hunter2@")
    messages = []
    for address in (f"{base}/a.tar?token=s3cret", f"{base}/b.tar?token=s3cret"):
        server.faults["/a.tar"] = {"status": 500}
        with pytest.raises(DataError) as caught:
            cache.open(address, 5)
        messages.append(str(caught.value))
    with pytest.raises(ConfigError) as wrong:
        expand_remote(f"{base}/{{a?token=s3cret")
    server.faults.clear()
    another_run = ShardCache(tmp_path / "cache", 1 << 24, QUICK)
    with another_run.open(f"{base}/a.tar?token=s3cret") as held:
        assert held.path.read_bytes() == DATA
    told = " ".join([*messages, str(wrong.value), *map(str, tmp_path.glob("cache/*"))])
    assert "hunter2" not in told
    assert "s3cret" not in told


def test_what_failed_is_not_retried_for_every_sample(server: Server, cache: ShardCache) -> None:
    server.faults["/a.tar"] = {"status": 500}
    for _ in range(3):
        with pytest.raises(DataError, match="gave up after 4 attempts"):
            cache.open(f"{server.url}/a.tar")
        assert server.requests["/a.tar"] == 4


def test_nobody_listens(cache: ShardCache) -> None:
    with Server() as gone:
        url = gone.url
    with pytest.raises(DataError, match=r"/a\.tar: gave up after 4 attempts, 0 of an unknown number of bytes got"):
        cache.open(f"{url}/a.tar")


def test_small_files_sizes_and_listings(server: Server) -> None:
    policy = QUICK
    server.files |= {"/names.txt": b"cat\n", "/empty": b"", "/s/1.tar": b"x", "/s/0.tar": b"y"}
    server.files["/s/"] = b'<a href="1.tar">1</a> <a href="0.tar">0</a> <a href="notes.txt">n</a>'
    server.faults["/names.txt"] = {"status": 503, "times": 2}
    assert read_remote(f"{server.url}/names.txt", policy=policy) == b"cat\n"
    assert read_remote(f"{server.url}/empty", policy=policy) == b""
    assert read_remote(f"{server.url}/absent", missing_ok=True, policy=policy) is None
    with pytest.raises(DataError, match=r"/absent: no such file$"):
        read_remote(f"{server.url}/absent", policy=policy)
    with pytest.raises(DataError, match=r"/a\.tar: 2,097,152 bytes or more, expected at most 1,000"):
        read_remote(f"{server.url}/a.tar", 1000, policy=policy)
    assert remote_size(f"{server.url}/a.tar", policy) == len(DATA)
    server.faults["/a.tar"] = {"no_length": True}
    assert remote_size(f"{server.url}/a.tar", policy) is None
    both = [f"{server.url}/s/0.tar", f"{server.url}/s/1.tar"]
    assert expand_remote(f"{server.url}/s/{{1,0}}.tar", policy) == both[::-1]
    assert expand_remote(f"{server.url}/s/*.tar", policy) == both
    assert expand_remote(f"{server.url}/s/", policy) == both
    with pytest.raises(ConfigError, match=r"/s/\*\.zip: nothing there matches"):
        expand_remote(f"{server.url}/s/*.zip", policy)
