"""One answer of a remote file system: where an address lies, and its bytes as they come."""

import asyncio
import os
import queue
import re
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError

_Put = Callable[[Any], None]

_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_BLOCK = 4 << 20


class Head(NamedTuple):
    """What precedes the bytes of an answer: position of the first one, bytes of the whole file, its version."""

    start: int
    total: int | None
    version: str | None


class AttemptError(Exception):
    """The remote side failed, for the reason in `__cause__`; never raised for trouble on this machine's disk."""


def shown(address: str) -> str:
    """An address as it may be shown: without user, password and query."""
    return re.split(r"[?#]", re.sub(r"//[^/@\s]*@", "//", address), maxsplit=1)[0]


def protocol(address: str) -> str:
    """The scheme of an address."""
    return re.split(r"::|://", address, maxsplit=1)[0]


def filesystem(address: str, **options: bool) -> tuple[Any, str]:
    """The fsspec file system of an address, configured by fsspec's own files and variables, and the path within it.

    Raises:
        ConfigError: a package is missing, an unknown scheme.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol(address))
        package = f"'mmrep[{extra}]'" if extra else (error.name or "the package of this scheme")
        raise ConfigError(f"{shown(address)}: needs a package that is missing: pip install {package}") from error
    except ValueError as error:
        raise ConfigError(f"{shown(address)}: {one_line(str(error))}") from error


if hasattr(os, "register_at_fork"):

    def _after_fork() -> None:
        # fsspec drops its event loop in a forked child, but not its lock, which another thread may have held.
        asyn = sys.modules.get("fsspec.asyn")
        if asyn is not None:
            asyn.reset_lock()

    os.register_at_fork(after_in_child=_after_fork)


def one_line(text: object) -> str:
    """A text of another package, as one line without users, passwords and queries of addresses."""
    line = " ".join(str(text).split())
    return re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "", re.sub(r"://[^/@\s]*@", "://", line))[:300]


def answers(address: str, produce: Callable[[_Put], None], timeout: float) -> Generator[Any, None, None]:
    """What `produce` hands to its argument, in a thread of its own, so that a stall inside any library is noticed.

    Raises:
        AttemptError: `produce` raised, or gave nothing for `timeout` seconds; its thread then ends by itself as soon
            as the call that it is stuck in does.
    """
    pieces: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=8)
    left = threading.Event()

    def put(item: Any, kind: str = "item") -> None:
        while not left.is_set():
            try:
                return pieces.put((kind, item), timeout=0.5)
            except queue.Full:
                continue
        raise InterruptedError("nobody listens any more")

    def work() -> None:
        try:
            produce(put)
            put(None, "end")
        except Exception as error:
            with suppress(InterruptedError):
                put(error, "error")

    threading.Thread(target=work, name=f"download {shown(address)}", daemon=True).start()
    try:
        while True:
            try:
                kind, item = pieces.get(timeout=timeout)
            except queue.Empty:
                raise AttemptError from TimeoutError("stalled")
            if kind == "error":
                raise AttemptError from item
            if kind == "end":
                return
            yield item
    finally:
        left.set()


def _http(fs: Any, path: str, start: int, version: str | None, timeout: float, put: _Put) -> None:
    """Head and bytes of an HTTP address, streamed through one connection.

    fsspec gives client and settings; its own reads fetch blocks, and call any failure of `info` a missing file. The
    loop is this thread's own: nothing that a fork would break.
    """
    import aiohttp

    headers = {**fs.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": version} if version else {})
    waits = aiohttp.ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
    request = {**fs.kwargs, "headers": headers, "timeout": waits}

    async def stream() -> None:
        session = await fs.set_session()
        try:
            async with session.get(fs.encode_url(path), **request) as response:
                if response.status != 416:
                    response.raise_for_status()
                put(_http_head(response, start))
                async for piece in response.content.iter_chunked(1 << 20):
                    put(piece)
        finally:
            await session.close()

    asyncio.run(stream())


def _http_head(response: Any, start: int) -> Head:
    headers = response.headers
    strong = headers.get("ETag", "")
    version = headers.get("Last-Modified") if not strong or strong.startswith("W/") else strong
    part = re.match(r"bytes (?:\*|(\d+)-\d+)/(\d+|\*)", headers.get("Content-Range", ""))
    total = int(part[2]) if part and part[2] != "*" else None
    if response.status == 416:
        return Head(start, -1 if total is None else total, version)  # the file ends before `start` now
    if response.status == 206 and part and part[1]:
        return Head(int(part[1]), total, version)
    if response.status == 206:
        raise ConnectionError(f"asked for bytes from {start} on, the server did not say which it sent")
    plain = headers.get("Content-Encoding", "identity") == "identity" and "Content-Length" in headers
    return Head(0, int(headers["Content-Length"]) if plain else None, version)


def _blocks(fs: Any, path: str, start: int, version: str | None, block: int, put: _Put) -> None:
    """Head and bytes of a file of any other file system, a block a request; without a known size in one go."""
    info = fs.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(f"{path} is a folder")
    total, now = info.get("size"), repr(sorted(info.items(), key=str))
    if total is None or now != version:
        start = 0
    put(Head(start, total, now))
    if total is None:
        put(fs.cat_file(path))
        return
    for begin in range(start, total, block):
        piece = fs.cat_file(path, start=begin, end=min(begin + block, total))
        put(piece)
        if len(piece) != min(block, total - begin):
            raise ConnectionError(f"{len(piece)} bytes of a block of {min(block, total - begin)}")


def open_answer(
    address: str, start: int, version: str | None, timeout: float, attempt: int = 0
) -> Generator[Any, None, None]:
    """`Head`, then bytes."""
    if protocol(address) in ("http", "https"):
        fs, path = filesystem(address, asynchronous=True, skip_instance_cache=True)
        produce = partial(_http, fs, path, start, version, timeout)
    else:
        fs, path = filesystem(address)
        # Smaller blocks after failures: a block is what a slow line must carry within the timeout.
        produce = partial(_blocks, fs, path, start, version, max(_BLOCK >> attempt, 1 << 16))
    return answers(address, produce, timeout)
