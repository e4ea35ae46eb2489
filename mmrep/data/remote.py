"""Remote files: shards through a bounded local cache, ahead of their use; small files; lists of addresses.

An address is anything that fsspec knows (https, s3, gs, hf, memory, …; `file:///…` copies from a slow disk to that of
the cache). Credentials and options come from fsspec's configuration files and variables; no message shows any.
"""

import hashlib
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, overload

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.data.answers import answers, filesystem, shown
from mmrep.data.cache_folder import CacheFolder, NoRoomError
from mmrep.data.download import DEFAULT_POLICY, Policy, download, is_absent, patiently, size_of
from mmrep.data.locks import HeldFile
from mmrep.data.tar import DataError

__all__ = ["HeldFile", "Prefetcher", "ShardCache", "Wanted", "expand_remote", "is_remote", "read_remote", "remote_size"]

_log = logging.getLogger("mmrep")
_SMALL_FILE = 256 << 20

Wanted = tuple[str, int | None, str | None]
"""Address, size in bytes and checksum of a shard; None where unknown."""


def is_remote(address: str) -> bool:
    """Whether it is an address with a scheme (`scheme://…`); never so for `pipe:`, which would run a shell."""
    return bool(re.match(r"(?!pipe:)[A-Za-z][\w+.-]*(::[\w+.-]+)*://", address))


class ShardCache:
    """A bounded folder of local copies that all processes of a host share; any of them may be killed at any time.

    A copy is known by its address and checksum; one whose size is not the one asked for is fetched anew. The limit is
    passed, with one warning, only where everything is in use and a shard is needed now.

    Args:
        root: the folder, on a disk of this host; made where it doesn't exist.
        limit_bytes: limit on all copies, with what is being downloaded.
        retries: attempts after the first.
        timeout: seconds without a byte after which an attempt is given up.
        backoff: seconds before the first retry; doubled before each further one, give or take half.
    """

    def __init__(
        self, root: Path, limit_bytes: int, *, retries: int = 5, timeout: float = 60.0, backoff: float = 1.0
    ) -> None:
        self._folder = CacheFolder(root, limit_bytes)
        self._policy = Policy(retries, timeout, backoff)

    def open(self, address: str, size: int | None = None, checksum: str | None = None) -> HeldFile:
        """The local copy of a remote file, downloaded now if it isn't there; nobody evicts it until it is closed.

        Args:
            address: `scheme://…`.
            size: bytes expected, if known.
            checksum: `md5:HEX`, `sha256:HEX` or `blake2b:HEX` expected, if known; verified at download.

        Raises:
            DataError: it can't be had, isn't the file expected, is larger than the cache, or the disk is full.
            ConfigError: a package is missing, a malformed checksum, a folder that can't be written.
        """
        name = _copy_name(address, checksum)
        held = self._folder.hold(name, size)
        return held if held is not None else self._fetch(name, address, size, checksum, polite=False)[0]

    def prefetch(self, address: str, size: int | None = None, checksum: str | None = None) -> bool:
        """Makes a copy present without holding it; True if it was downloaded for that.

        Never passes the cache's limit: where all copies are in use it does nothing. Raises what `open` raises.
        """
        name = _copy_name(address, checksum)
        if self._folder.has(name, size):
            return False
        with suppress(NoRoomError):
            held, downloaded = self._fetch(name, address, size, checksum, polite=True)
            held.close()
            return downloaded
        return False

    def _fetch(
        self, name: str, address: str, size: int | None, checksum: str | None, polite: bool
    ) -> tuple[HeldFile, bool]:
        with self._folder.writing(name):
            held = self._folder.hold(name, size)
            if held is not None:
                return held, False
            with self._folder.part(name, shown(address), polite) as part:
                download(address, part, size, checksum, self._policy)
                return part.finish(), True


def _copy_name(address: str, checksum: str | None) -> str:
    """The file name of a copy: without the address's password and query, which may be secret."""
    known = f"{re.sub(r'//[^/@]*@', '//', address)}\n{(checksum or '').lower()}"
    digest = hashlib.blake2b(known.encode(), digest_size=16).hexdigest()
    return f"{digest}-{re.sub(r'[^A-Za-z0-9._-]', '_', shown(address).rpartition('/')[2])[-100:]}"


class Prefetcher:
    """Downloads ahead in background threads, in the order asked for.

    What fails is logged as a warning once for each address and not tried again here: `ShardCache.open` will, and raise.
    What is wanted ahead should fit into the cache together, or the last will push out the first.

    Args:
        cache: where to.
        threads: downloads at a time.

    Attributes:
        errors: the last error of each address that failed.
    """

    def __init__(self, cache: ShardCache, threads: int = 4) -> None:
        self.errors: dict[str, str] = {}
        self._cache, self._threads = cache, threads
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._queue: deque[Wanted] = deque()
        self._running: set[str] = set()
        self._started = self._closed = False

    def want(self, wanted: Sequence[Wanted]) -> None:
        """Replaces what is to be fetched next; downloads under way go on."""
        if self._process != os.getpid():
            self._reset()  # the threads stayed in the parent of a fork
        with self._changed:
            self._queue = deque(wanted)
            self._changed.notify_all()
            if not self._started and not self._closed:
                self._started = True
                for number in range(self._threads):
                    threading.Thread(target=self._work, name=f"prefetch {number}", daemon=True).start()

    def close(self) -> None:
        """Fetches nothing more; downloads under way end by themselves, or with the process."""
        if self._process == os.getpid():
            with self._changed:
                self._closed = True
                self._queue.clear()
                self._changed.notify_all()

    def _next(self) -> Wanted | None:
        with self._changed:
            while not self._closed:
                while self._queue:
                    one = self._queue.popleft()
                    if one[0] not in self._running and one[0] not in self.errors:
                        self._running.add(one[0])
                        return one
                self._changed.wait()
        return None

    def _work(self) -> None:
        while (one := self._next()) is not None:
            try:
                self._cache.prefetch(*one)
            except Exception as error:
                self.errors[one[0]] = str(error)
                kind = "" if isinstance(error, MmrepError) else f"{shown(one[0])}: {type(error).__name__}: "
                _log.warning("download ahead failed: %s%s", kind, error)
            finally:
                with self._changed:
                    self._running.discard(one[0])


def remote_size(address: str, policy: Policy = DEFAULT_POLICY) -> int | None:
    """Size of a remote file in bytes; None where the server does not say.

    Raises:
        DataError: it can't be had.
        ConfigError: a package is missing.
    """
    return size_of(address, policy)


def expand_remote(pattern: str, policy: Policy = DEFAULT_POLICY) -> list[str]:
    """The addresses that a pattern stands for: braces in their order; a glob (`*`) sorted, a folder (`…/`) its tars.

    Addresses without a glob are not looked up.

    Raises:
        ConfigError: unbalanced braces, a glob or folder without a match, a missing package.
        DataError: the listing can't be had.
    """
    from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error

    try:
        names = list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{shown(pattern)}: unbalanced braces") from error
    return [found for name in names for found in _matches(f"{name}*.tar" if name.endswith("/") else name, policy)]


def _matches(name: str, policy: Policy) -> list[str]:
    if "*" not in name:
        return [name]
    if "::" in name:
        raise ConfigError(f"{shown(name)}: a glob in a chain of addresses can't be looked up; list the shards")
    fs, path = filesystem(name)

    def attempt() -> list[str]:
        return next(answers(name, lambda put: put(fs.glob(path)), policy.timeout))

    # fsspec's own way back to addresses loses user and host of some schemes.
    scheme = name.removesuffix(path)
    found = [scheme + match for match in sorted(patiently(name, attempt, policy))]
    if not found:
        raise ConfigError(f"{shown(name)}: nothing there matches")
    return found


class _Memory:
    """A `Sink` in memory, for a file of at most `limit` bytes."""

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
    """A small remote file (an index, class names, statistics), not cached.

    Args:
        address: `scheme://…`.
        limit: most bytes taken.
        missing_ok: None for a file that isn't there, or can't be seen (object stores answer 403 for a missing file to
            who may not list them).
        policy: how patient.

    Raises:
        DataError: missing, larger than `limit`, or it can't be had.
        ConfigError: a package is missing.
    """
    memory = _Memory(address, limit)
    try:
        download(address, memory, None, None, policy)
    except DataError as error:
        if missing_ok and is_absent(error.__cause__):
            return None
        raise
    return bytes(memory.data)
