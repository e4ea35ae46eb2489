"""Downloads: failures are retried, broken ones resumed, stalls noticed; sizes and listings of remote folders."""

import asyncio
import os
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, overload, runtime_checkable

from mmrep.config.checks import ConfigError
from mmrep.data.files import expand_braces
from mmrep.data.tar import DataError

_T = TypeVar("_T")
_Put = Callable[[Any], None]

_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_BLOCK = 4 << 20
_SMALL_FILE = 256 << 20
_PASSING_STATUS = (408, 425, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""
_LASTING = ("NoCredentialsError", "InvalidURL", "InvalidUrlClientError", "ClientConnectorCertificateError")
"""Errors after which another attempt can't succeed, by class name because their packages are optional."""
_LONGEST_WAIT = 60.0
_jitter = random.SystemRandom()
"""Not the global generator, whose state belongs to the run."""


class Policy(NamedTuple):
    """Retry policy of a download.

    Attributes:
        retries: attempts after the first.
        timeout: seconds without a byte after which an attempt is given up.
        backoff: seconds before the first retry; they double before each further one, and vary by half.
    """

    retries: int = 5
    timeout: float = 60.0
    backoff: float = 1.0


DEFAULT_POLICY = Policy()


@runtime_checkable
class Sink(Protocol):
    """Destination of a download."""

    def restart(self, total: int | None) -> None:
        """Forget everything written; `total` bytes follow, or an unknown number."""

    def write(self, data: bytes) -> None:
        """Append bytes."""


class AttemptError(Exception):
    """The remote side failed, for the reason in `__cause__`. Trouble with the local disk is never one."""


class _WrongBytesError(Exception):
    """Another file than the expected one came."""


class _Head(NamedTuple):
    """The beginning of an answer: position of the first byte, bytes of the whole file, version of the file."""

    start: int
    total: int | None
    version: str | None


def is_remote(address: str) -> bool:
    """Return whether a text is an address (`scheme://…`). `pipe:`, which would run a shell, never is."""
    return bool(re.match(r"(?!pipe:)[A-Za-z][\w+.-]*(::[\w+.-]+)*://", address))


def shown(address: str) -> str:
    """Return an address as messages may show it: without user, password and query."""
    return re.split(r"[?#]", re.sub(r"//[^/@\s]*@", "//", address), maxsplit=1)[0]


def _one_line(text: object) -> str:
    """Return a message of another package as one line without users, passwords and queries of addresses."""
    line = " ".join(str(text).split())
    return re.sub(r"\?[^\s'\"]*=[^\s'\"]*", "", re.sub(r"://[^/@\s]*@", "://", line))[:300]


def _filesystem(address: str, **options: bool) -> tuple[Any, str]:
    """Return the fsspec file system of an address, and the path within it; raise ConfigError if there is none."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(address, **options)
    except ImportError as error:
        extra = _EXTRAS.get(re.split(r"::|://", address, maxsplit=1)[0])
        package = f"'mmrep[{extra}]'" if extra else (error.name or "the package of this scheme")
        raise ConfigError(f"{shown(address)}: needs a package that is missing: pip install {package}") from error
    except ValueError as error:
        raise ConfigError(f"{shown(address)}: {_one_line(str(error))}") from error


if hasattr(os, "register_at_fork"):

    def _after_fork() -> None:
        # fsspec drops its event loop in a forked child, but not its lock, which another thread may have held.
        asyn = sys.modules.get("fsspec.asyn")
        if asyn is not None:
            asyn.reset_lock()

    os.register_at_fork(after_in_child=_after_fork)


def _pieces(address: str, produce: Callable[[_Put], None], timeout: float) -> Generator[Any, None, None]:
    """Yield what `produce` passes to its argument. It runs in a thread, so that a stall in any library is noticed.

    Raises:
        AttemptError: `produce` raised, or passed nothing for `timeout` seconds. Its thread then ends as soon as the
            call that it is stuck in does.
    """
    pieces: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=8)
    left = threading.Event()

    def put(item: Any, kind: str = "item") -> None:
        while not left.is_set():
            try:
                return pieces.put((kind, item), timeout=0.5)
            except queue.Full:
                continue
        raise InterruptedError("the reader has left")

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
    """Pass on the head and the bytes of an HTTP answer, streamed through one connection.

    fsspec provides client and settings. Its own reads fetch blocks, and report any failure of `info` as a missing
    file. The event loop belongs to this thread, so that a fork does not break it.
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


def _http_head(response: Any, start: int) -> _Head:
    headers = response.headers
    tag = headers.get("ETag", "")
    version = headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
    part = re.match(r"bytes (?:\*|(\d+)-\d+)/(\d+|\*)", headers.get("Content-Range", ""))
    total = int(part[2]) if part and part[2] != "*" else None
    if response.status == 416:
        return _Head(start, -1 if total is None else total, version)  # the file now ends before `start`
    if response.status == 206 and part and part[1]:
        return _Head(int(part[1]), total, version)
    if response.status == 206:
        raise ConnectionError(f"asked for bytes from {start} on, the server did not say which it sent")
    plain = headers.get("Content-Encoding", "identity") == "identity" and "Content-Length" in headers
    return _Head(0, int(headers["Content-Length"]) if plain else None, version)


def _blocks(fs: Any, path: str, start: int, version: str | None, block: int, put: _Put) -> None:
    """Pass on the head and the bytes of a file of any other file system, in blocks if its size is known."""
    info = fs.info(path)
    if info.get("type") == "directory":
        raise IsADirectoryError(f"{path} is a folder")
    total, now = info.get("size"), repr(sorted(info.items(), key=str))
    if total is None or now != version:
        start = 0
    put(_Head(start, total, now))
    if total is None:
        put(fs.cat_file(path))
        return
    for begin in range(start, total, block):
        piece = fs.cat_file(path, start=begin, end=min(begin + block, total))
        put(piece)
        if len(piece) != min(block, total - begin):
            raise ConnectionError(f"{len(piece)} bytes of a block of {min(block, total - begin)}")


def _answer(
    address: str, start: int, version: str | None, timeout: float, attempt: int = 0
) -> Generator[Any, None, None]:
    """Yield the head of a remote file, then its bytes from `start` on, unless the file is no longer `version`."""
    if re.match(r"https?(::|://)", address):
        fs, path = _filesystem(address, asynchronous=True, skip_instance_cache=True)
        return _pieces(address, partial(_http, fs, path, start, version, timeout), timeout)
    fs, path = _filesystem(address)
    # Smaller blocks after failures: a slow line must carry one within the timeout.
    block = max(_BLOCK >> attempt, 1 << 16)
    return _pieces(address, partial(_blocks, fs, path, start, version, block), timeout)


def _patiently(address: str, attempt: Callable[[int], _T], policy: Policy, got: Callable[[], str] = str) -> _T:
    """Return the result of `attempt`; repeat it after growing pauses if the remote side fails and may recover.

    Args:
        address: the address in messages.
        attempt: is called with the number of the attempt, from 0; raises AttemptError if the remote side fails.
        policy: the retry policy.
        got: returns the progress for the message.

    Raises:
        DataError: all attempts failed. Its `__cause__` is the last error of the remote side.
    """
    for number in range(policy.retries + 1):
        try:
            return attempt(number)
        except AttemptError as error:
            cause = error.__cause__
            assert cause is not None, "an attempt's error has a cause"
            lasting = _is_lasting(cause)
            if lasting or number == policy.retries:
                tries = "" if lasting else f"gave up after {number + 1} attempts{got()}: "
                raise DataError(f"{shown(address)}: {tries}{_reason(cause, policy.timeout)}") from cause
        time.sleep(min(policy.backoff * 2**number, _LONGEST_WAIT) * _jitter.uniform(0.5, 1.5))
    raise AssertionError("the last attempt returns or raises")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of any client library."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _is_lasting(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return status < 500 and status not in _PASSING_STATUS
    kinds = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, ImportError)
    return isinstance(error, kinds) or type(error).__name__ in _LASTING


def _is_absent(error: BaseException | None) -> bool:
    """Return whether an error means that the file is missing or hidden.

    Object stores answer 403 instead of 404 to users who may not list a bucket.
    """
    return isinstance(error, FileNotFoundError | PermissionError) or (
        error is not None and _status(error) in (403, 404, 410)
    )


def _reason(error: BaseException, timeout: float) -> str:
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return "no such file"
    if isinstance(error, TimeoutError):
        return f"no byte for {timeout:g} s"
    if status is not None:
        hint = " (credentials are taken from fsspec's configuration)" if status in (401, 403) else ""
        return f"the server answered {status} {_one_line(getattr(error, 'message', ''))}".rstrip() + hint
    if isinstance(error, _WrongBytesError):
        return str(error)
    return _one_line(f"{type(error).__name__}: {error}")


def download(address: str, sink: Sink, size: int | None, policy: Policy) -> None:
    """Download a file. Each attempt resumes where the last one broke off, if the server can do that.

    Args:
        address: `scheme://…`.
        sink: the destination.
        size: bytes expected; None: as many as the server announces.
        policy: the retry policy.

    Raises:
        ConfigError: a package is missing.
        DataError: the remote side failed for good, or its file has another size.
    """
    got, total, version = 0, size, None

    def wrong(reason: str) -> AttemptError:
        nonlocal got, version
        got, version = 0, None  # nothing of the file can be kept
        error = AttemptError()
        error.__cause__ = _WrongBytesError(reason)
        return error

    def attempt(number: int) -> None:
        nonlocal got, total, version
        with closing(_answer(address, got, version, policy.timeout, number)) as answer:
            head: _Head = next(answer)
            if size is not None and head.total not in (None, size):
                raise wrong(f"the file has {head.total:,} bytes, expected {size:,}")
            if head.start and (head.start != got or head.total not in (None, total)):
                raise wrong("the file changed while it was downloaded")
            if not head.start:
                got, total = 0, head.total if size is None else size
                sink.restart(total)
            version = head.version
            for piece in answer:
                sink.write(piece)
                got += len(piece)
                if total is not None and got > total:
                    raise wrong(f"more than {total:,} bytes came")
        if total is not None and got < total:
            raise AttemptError from ConnectionError(f"{got:,} of {total:,} bytes came")

    def progress() -> str:
        return f", {got:,} of {'an unknown number of' if total is None else f'{total:,}'} bytes got"

    _patiently(address, attempt, policy, progress)


class _Memory:
    """A sink in memory, for a file of at most `limit` bytes."""

    def __init__(self, address: str, limit: int) -> None:
        self.address, self.limit, self.data = address, limit, bytearray()

    def restart(self, total: int | None) -> None:
        """See `Sink`."""
        self.data.clear()
        self._check(total or 0)

    def write(self, data: bytes) -> None:
        """See `Sink`."""
        self._check(len(self.data) + len(data))
        self.data += data

    def _check(self, length: int) -> None:
        if length > self.limit:
            raise DataError(f"{shown(self.address)}: {length:,} bytes or more, expected at most {self.limit:,}")


@overload
def read_remote(address: str, limit: int = ..., *, missing_ok: Literal[False] = ..., policy: Policy = ...) -> bytes: ...
@overload
def read_remote(address: str, limit: int = ..., *, missing_ok: bool, policy: Policy = ...) -> bytes | None: ...
def read_remote(
    address: str, limit: int = _SMALL_FILE, *, missing_ok: bool = False, policy: Policy = DEFAULT_POLICY
) -> bytes | None:
    """Return the content of a small remote file (an index, class names, statistics). It is not cached.

    Args:
        address: `scheme://…`.
        limit: most bytes.
        missing_ok: return None for a file that is missing or hidden.
        policy: the retry policy.

    Raises:
        DataError: missing, larger than `limit`, or the download failed.
        ConfigError: a package is missing.
    """
    memory = _Memory(address, limit)
    try:
        download(address, memory, None, policy)
    except DataError as error:
        if missing_ok and _is_absent(error.__cause__):
            return None
        raise
    return bytes(memory.data)


def remote_size(address: str, policy: Policy = DEFAULT_POLICY) -> int | None:
    """Return the size of a remote file in bytes; None if the server does not announce it.

    Raises:
        DataError: the request failed.
        ConfigError: a package is missing.
    """

    def attempt(_: int) -> int | None:
        with closing(_answer(address, 0, None, policy.timeout)) as answer:
            return next(answer).total

    return _patiently(address, attempt, policy)


def expand_remote(pattern: str, policy: Policy = DEFAULT_POLICY) -> list[str]:
    """Return the addresses of a pattern: braces in their order, a glob (`*`) sorted, the tars of a folder (`…/`).

    Addresses without a glob are not looked up.

    Raises:
        ConfigError: unbalanced braces, a glob or folder without a match, a missing package.
        DataError: the listing failed.
    """
    names = expand_braces(pattern, shown(pattern))
    return [found for name in names for found in _matches(f"{name}*.tar" if name.endswith("/") else name, policy)]


def _matches(name: str, policy: Policy) -> list[str]:
    if "*" not in name:
        return [name]
    if "::" in name:
        raise ConfigError(f"{shown(name)}: a glob in a chain of addresses can't be looked up; list the shards")
    fs, path = _filesystem(name)

    def attempt(_: int) -> list[str]:
        return next(_pieces(name, lambda put: put(fs.glob(path)), policy.timeout))

    # fsspec's own way back to addresses loses user and host of some schemes.
    scheme = name.removesuffix(path)
    found = [scheme + match for match in sorted(_patiently(name, attempt, policy))]
    if not found:
        raise ConfigError(f"{shown(name)}: nothing there matches")
    return found


def remote_folders(address: str, policy: Policy = DEFAULT_POLICY) -> list[str] | None:
    """Return the sorted names of the folders in a remote folder, for messages; None if it can't be listed.

    Raises:
        ConfigError: a package is missing.
    """
    fs, path = _filesystem(address)
    try:
        entries = next(_pieces(address, lambda put: put(fs.ls(path, detail=True)), policy.timeout))
    except AttemptError:
        return None
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")
