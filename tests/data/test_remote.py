"""The cache of remote shards: bounded, shared by processes that may die, never without a shard that is in use."""

import hashlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from http_server import Server

from mmrep.config.checks import ConfigError
from mmrep.data.ahead import Prefetcher
from mmrep.data.remote import ShardCache, expand_remote, is_remote, read_remote, remote_size
from mmrep.data.remote import cache as cache_module
from mmrep.data.remote.download import Policy
from mmrep.data.tar import DataError

QUICK = Policy(retries=2, timeout=20.0, backoff=0.01)
SIZE = 100_000
MEMORY = "memory://set/{}.tar"


@pytest.fixture
def memory() -> Iterator[Any]:
    """Ten shards of SIZE bytes, memory://set/0.tar and so on."""
    fs = fsspec.filesystem("memory")
    for i in range(10):
        fs.pipe(f"/set/{i}.tar", bytes([i]) * SIZE)
    yield fs
    fs.rm("/set", recursive=True)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.files = {f"/{i}.tar": random.Random(i).randbytes(4 * SIZE) for i in range(8)}
        yield running


def make(tmp_path: Path, shards: float) -> ShardCache:
    return ShardCache(tmp_path / "cache", int(shards * SIZE), QUICK)


def present(tmp_path: Path) -> list[str]:
    """Shards of which there is a copy."""
    return sorted(path.name[33:] for path in (tmp_path / "cache").glob("????????????????????????????????-*"))


def until(done: Callable[[], bool], what: str) -> None:
    for _ in range(6000):
        if done():
            return
        time.sleep(0.005)
    raise AssertionError(f"waited 30 s for: {what}")


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Another process, with a cache `cache` of 100 MB in the folder of its first argument, the others in `args`."""
    prelude = (
        "import sys; from pathlib import Path; from mmrep.data.remote import ShardCache; "
        "from mmrep.data.remote.download import Policy; args = sys.argv[2:]; "
        f"cache = ShardCache(Path(sys.argv[1]), 10 ** 8, {QUICK});"
    )
    command = [sys.executable, "-c", prelude + code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://host/a.tar", True),
        ("s3://bucket/a.tar", True),
        ("file:///data/a.tar", True),
        ("zip://a.tar::https://host/a.zip", True),
        ("simplecache::s3://bucket/a.tar", True),
        ("/data/a.tar", False),
        ("data/a.tar", False),
        ("pipe:curl https://host/a.tar", False),
        ("pipe://x", False),
        ("scenes:train", False),
    ],
)
def test_is_remote(address: str, expected: bool) -> None:
    assert is_remote(address) is expected


def test_any_file_system(memory: Any, tmp_path: Path) -> None:
    slow = tmp_path / "slow disk" / "x.tar"
    slow.parent.mkdir()
    slow.write_bytes(os.urandom(5 << 20))  # more than one block
    cache = make(tmp_path, 1000)
    with cache.open(f"file://{slow}", 5 << 20) as held:
        assert held.path.read_bytes() == slow.read_bytes()
    with cache.open(MEMORY.format(3)) as held:
        assert held.path.read_bytes() == bytes([3]) * SIZE
    with pytest.raises(DataError, match=r"memory://set/99\.tar: no such file$"):
        cache.open(MEMORY.format(99))
    with pytest.raises(DataError, match="is a folder"):
        cache.open("memory://set")
    assert remote_size(MEMORY.format(1)) == SIZE
    assert read_remote(MEMORY.format(1)) == bytes([1]) * SIZE
    assert read_remote("memory://set/none", missing_ok=True) is None


def test_patterns(memory: Any) -> None:
    memory.pipe("/set/notes.txt", b"x")
    everything = [MEMORY.format(i) for i in range(10)]
    assert expand_remote("memory://set/{0..9}.tar") == everything
    assert expand_remote("memory://set/") == everything
    assert expand_remote("memory://{set,set}/1*.tar") == [MEMORY.format(1)] * 2
    with pytest.raises(ConfigError, match=r"^memory://set/x\*: nothing there matches$"):
        expand_remote("memory://set/x*")
    with pytest.raises(ConfigError, match=r"unbalanced braces"):
        expand_remote("memory://set/{0..9.tar")


def test_missing_packages_and_schemes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make(tmp_path, 10)
    for name in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, name, None)
    for address, extra in (("s3://b/a.tar", "s3"), ("gs://b/a.tar", "gcs")):
        with pytest.raises(ConfigError, match=rf"^{address}: needs .*: pip install 'mmrep\[{extra}\]'$"):
            cache.open(address)
    with pytest.raises(ConfigError, match=r"^nonsense://a\.tar: Protocol not known: nonsense$"):
        cache.open("nonsense://a.tar")


def test_the_limit_holds_and_the_least_recently_used_goes(memory: Any, tmp_path: Path) -> None:
    cache = make(tmp_path, 3.5)
    foreign = tmp_path / "cache" / "mine.tar"
    foreign.parent.mkdir()
    foreign.write_bytes(b"x" * 10 * SIZE)
    for i in range(3):
        cache.open(MEMORY.format(i)).close()
    with cache.open(MEMORY.format(0)) as held:
        stamp = held.path.stat().st_mtime_ns
    cache.open(MEMORY.format(3)).close()
    assert present(tmp_path) == ["0.tar", "2.tar", "3.tar"]
    assert held.path.stat().st_mtime_ns == stamp, "use leaves the stamp that indexes rest on"
    for i in range(10):
        cache.open(MEMORY.format(i)).close()
        sizes = [path.stat().st_size for path in foreign.parent.iterdir() if path != foreign]
        assert sum(sizes) <= 3.5 * SIZE
    assert foreign.stat().st_size == 10 * SIZE, "what is not the cache's own is left alone"


def test_what_failed_is_not_tried_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, asked = make(tmp_path, 10), []
    download = cache_module.download
    monkeypatch.setattr(cache_module, "download", lambda *args: (asked.append(args[0]), download(*args)))
    for _ in range(3):
        with pytest.raises(DataError, match=r"memory://set/99\.tar: no such file$"):
            cache.open(MEMORY.format(99))
    assert asked == [MEMORY.format(99)]
    monkeypatch.setattr(cache_module, "_FAILED_SECONDS", 0.0)
    with pytest.raises(DataError, match="no such file"):
        cache.open(MEMORY.format(99))
    assert len(asked) == 2


def test_too_large_for_the_cache(memory: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^memory://set/1\.tar: 100,000 bytes, more than .* \(50,000\); raise"):
        make(tmp_path, 0.5).open(MEMORY.format(1))
    assert present(tmp_path) == []


def test_a_run_goes_on_where_all_is_in_use(memory: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(tmp_path, 2)
    held = [cache.open(MEMORY.format(i)) for i in range(2)]
    assert not cache.prefetch(MEMORY.format(5)), "what may wait does not pass the limit"
    assert present(tmp_path) == ["0.tar", "1.tar"]
    with caplog.at_level(logging.WARNING, "mmrep"):
        held += [cache.open(MEMORY.format(i)) for i in range(2, 4)]
    assert len(caplog.records) == 1
    assert "all copies are in use, and the limit of 200,000 bytes is passed by 100,000" in caplog.text
    del held
    cache.open(MEMORY.format(4)).close()
    assert len(present(tmp_path)) == 2, "back under the limit as soon as they are let go"


def test_a_shard_held_by_another_process_stays(memory: Any, tmp_path: Path) -> None:
    source = tmp_path / "a.tar"
    source.write_bytes(b"a" * SIZE)
    cache = make(tmp_path, 2)
    code = "held = cache.open(args[0]); print(1, flush=True); sys.stdin.read()"
    with python(code, tmp_path / "cache", f"file://{source}") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"1\n"
        for i in range(4):
            cache.open(MEMORY.format(i)).close()
            assert present(tmp_path) == sorted(["a.tar", f"{i}.tar"])
        other.kill()
        other.communicate()
    for i in range(2):
        cache.open(MEMORY.format(i)).close()
    assert present(tmp_path) == ["0.tar", "1.tar"], "a killed holder holds nothing"


def test_an_eviction_between_open_and_lock_is_noticed(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make(tmp_path, 10)
    with cache.open(MEMORY.format(1)) as held:
        path = held.path
    lock, calls = cache_module.fcntl.flock, []

    def evict_first(descriptor: int, how: int) -> None:
        if how == cache_module.fcntl.LOCK_SH and not calls:
            calls.append(path)
            path.unlink()
        lock(descriptor, how)

    monkeypatch.setattr(cache_module.fcntl, "flock", evict_first)
    with cache.open(MEMORY.format(1)) as held:
        assert calls
        assert os.path.samestat(os.fstat(held.descriptor), path.stat())


def test_processes_download_an_address_once(server: Server, tmp_path: Path) -> None:
    code = "sys.stdin.readline(); [print(len(cache.open(a).path.read_bytes())) for a in args]"
    addresses = [f"{server.url}/{i}.tar" for i in range(4)]
    for path in server.files:
        server.faults[path] = {"rate": 2e6}
    orders = (addresses, addresses[::-1], addresses[2:] + addresses[:2])
    others = [python(code, tmp_path / "cache", *order) for order in orders]
    answers = [other.communicate(b"go\n", timeout=60)[0] for other in others]
    assert answers == [b"400000\n" * 4] * 3
    assert set(server.requests.values()) == {1}


def test_kill_9_of_a_downloader_frees_the_others(server: Server, tmp_path: Path) -> None:
    address = f"{server.url}/0.tar"
    server.faults["/0.tar"] = {"stall": 2 * SIZE, "times": 1}
    other = python("cache.open(args[0])", tmp_path / "cache", address)
    until(lambda: server.sent["/0.tar"] >= SIZE, "half of the shard")
    found: list[bytes] = []
    waiting = threading.Thread(target=lambda: found.append(make(tmp_path, 100).open(address).path.read_bytes()))
    waiting.start()
    time.sleep(0.2)
    assert server.requests["/0.tar"] == 1, "the second waits for the first"
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    waiting.join(30)
    assert found == [server.files["/0.tar"]]
    assert server.requests["/0.tar"] == 2


def test_a_killed_downloader_leaves_no_lock_to_its_children(server: Server, tmp_path: Path) -> None:
    address = f"{server.url}/0.tar"
    server.faults["/0.tar"] = {"stall": 2 * SIZE, "times": 1}
    code = (
        "import os, threading, time; threading.Thread(target=cache.open, args=args, daemon=True).start(); "
        "sys.stdin.readline(); child = os.fork(); print(child, flush=True) if child else None; time.sleep(60)"
    )
    with python(code, tmp_path / "cache", address) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        until(lambda: server.sent["/0.tar"] >= SIZE, "a download under way")
        other.stdin.write(b"fork\n")
        other.stdin.flush()
        child = int(other.stdout.readline())
        other.kill()
        other.wait()
        found: list[int] = []
        waiting = threading.Thread(
            target=lambda: found.append(make(tmp_path, 100).open(address).path.stat().st_size), daemon=True
        )
        waiting.start()
        waiting.join(20)
        os.kill(child, signal.SIGKILL)
    assert found == [4 * SIZE]


def test_what_a_dead_process_left_goes(server: Server, memory: Any, tmp_path: Path) -> None:
    server.faults["/0.tar"] = {"stall": 2 * SIZE}
    other = python("cache.open(args[0])", tmp_path / "cache", f"{server.url}/0.tar")

    def parts() -> list[Path]:
        return list((tmp_path / "cache").glob(".*.part"))

    until(lambda: bool(parts()) and parts()[0].stat().st_size == 4 * SIZE, "the whole room taken")
    cache = make(tmp_path, 5)
    cache.open(MEMORY.format(1)).close()
    cache.open(MEMORY.format(2)).close()
    assert present(tmp_path) == ["2.tar"], "what is being downloaded counts with its full size"
    other.kill()
    other.communicate()
    cache.open(MEMORY.format(3)).close()
    assert parts() == []
    assert present(tmp_path) == ["2.tar", "3.tar"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_download_too(server: Server, tmp_path: Path) -> None:
    cache = make(tmp_path, 100)
    cache.open(f"{server.url}/0.tar").close()
    fsspec.filesystem("http").exists(f"{server.url}/0.tar")  # fsspec's own thread runs now
    server.faults["/7.tar"] = {"stall": 2 * SIZE, "times": 1}
    stuck = ShardCache(tmp_path / "cache", 10**8, QUICK._replace(timeout=1.0))
    under_way = threading.Thread(target=lambda: stuck.open(f"{server.url}/7.tar").close())
    under_way.start()
    until(lambda: server.sent["/7.tar"] > 0, "a download under way during the fork")
    context = multiprocessing.get_context("fork")

    def work(number: int, answers: Any) -> None:
        with cache.open(f"{server.url}/{number}.tar") as held:
            glob = fsspec.filesystem("http").exists(f"{server.url}/0.tar")
            answers.put((number, hashlib.md5(held.path.read_bytes()).hexdigest(), glob))

    answers = context.Queue()
    children = [context.Process(target=work, args=(number, answers)) for number in (0, 1, 7)]
    for child in children:
        child.start()
    got = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join(60)
    under_way.join(60)
    assert got == {(i, hashlib.md5(server.files[f"/{i}.tar"]).hexdigest(), True) for i in (0, 1, 7)}


def test_prefetcher_is_parallel_and_in_order(server: Server, tmp_path: Path) -> None:
    cache = make(tmp_path, 1000)
    gate = threading.Event()
    for path in server.files:
        server.faults[path] = {"after": lambda _: gate.wait(30)}
    ahead = Prefetcher(cache, threads=4)
    requests = [(f"{server.url}/{i}.tar", 4 * SIZE, 0) for i in (5, 3, 6, 0, 1, 2)]
    ahead.fetch(requests)
    until(lambda: server.running == 4, "four downloads at a time")
    assert set(server.requests) == {"/5.tar", "/3.tar", "/6.tar", "/0.tar"}
    ahead.fetch([requests[0], requests[5]])
    gate.set()
    until(lambda: present(tmp_path) == [f"{i}.tar" for i in (0, 2, 3, 5, 6)], "what is requested, and no more")
    ahead.fetch(requests[:1])
    for one in requests:
        cache.open(*one).close()
    assert set(server.requests.values()) == {1}
    ahead.close()


def test_prefetcher_reports_an_address_once(memory: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = make(tmp_path, 100)
    ahead = Prefetcher(cache, threads=1)
    bad = MEMORY.format(77)
    with caplog.at_level(logging.WARNING, "mmrep"):
        for i in range(3):
            ahead.fetch([(bad, None, 0), (MEMORY.format(i), SIZE, 0)])
            until(lambda i=i: f"{i}.tar" in present(tmp_path), "the next one")
    assert caplog.messages == ["download ahead failed: memory://set/77.tar: no such file"]
    assert ahead.errors == {bad: "memory://set/77.tar: no such file"}
    ahead.close()
    with pytest.raises(DataError, match="no such file"):
        cache.open(bad)


def test_a_full_disk_costs_what_nobody_uses_then_says_so(memory: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320k", "none", str(disk)], capture_output=True)
    if mount.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        cache = ShardCache(disk / "cache", 10**9, QUICK)
        for i in range(6):
            cache.open(MEMORY.format(i)).close()
        held = [cache.open(MEMORY.format(i)) for i in range(3)]
        message = r"cache: No space left on device, after .* bytes of memory://set/9\.tar; free .*data\.cache_dir"
        with pytest.raises(DataError, match=message):
            cache.open(MEMORY.format(9))
        del held
        cache.open(MEMORY.format(9)).close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_failing_disk_is_no_network_trouble(memory: Any, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(DataError, match=r"cache: File too large, after 0 bytes of memory://set/0\.tar"):
            make(tmp_path, 10).open(MEMORY.format(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"file: File exists; data\.cache_dir or MMREP_CACHE moves the cache"):
        ShardCache(tmp_path / "file", SIZE, QUICK).open(MEMORY.format(0))


def test_a_stall_in_any_file_system_is_noticed(memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, calls = threading.Event(), []
    read = type(memory).cat_file

    def stall_once(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        calls.append(path)
        if len(calls) == 1:
            release.wait(30)
        return read(self, path, start=start, end=end)

    monkeypatch.setattr(type(memory), "cat_file", stall_once)
    data = read_remote(MEMORY.format(1), policy=Policy(retries=2, timeout=1.0, backoff=0.01))
    release.set()
    assert data == bytes([1]) * SIZE
    assert len(calls) >= 2
