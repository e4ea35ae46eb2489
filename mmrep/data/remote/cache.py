"""Shards through a bounded cache, and ahead of their use."""

import hashlib
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mmrep.config.checks import MmrepError
from mmrep.data.remote.answers import shown
from mmrep.data.remote.download import Policy, download
from mmrep.data.remote.folder import FULL, CacheFolder, NoRoomError
from mmrep.data.remote.locks import HeldFile
from mmrep.data.tar import DataError

LOG = logging.getLogger("mmrep")
_FAILED_SECONDS = 600.0
"""After all retries have failed, so long the same error is raised at once: each sample of the shard would retry."""

Wanted = tuple[str, int | None, str | None, int]
"""Address, size in bytes, checksum and version of a shard; None or 0 where unknown."""


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
        self._failed: dict[str, tuple[float, str]] = {}

    def open(self, address: str, size: int | None = None, checksum: str | None = None, version: int = 0) -> HeldFile:
        """The local copy of a remote file, downloaded now if it isn't there; nobody evicts it until it is closed.

        Args:
            address: `scheme://…`.
            size: bytes expected, if known.
            checksum: `md5:HEX`, `sha256:HEX` or `blake2b:HEX` expected, if known; verified at download.
            version: copies of another one are not used; 0: any.

        Raises:
            DataError: it can't be had, isn't the file expected, is larger than the cache, or the disk is full.
            ConfigError: a package is missing, a malformed checksum, a folder that can't be written.
        """
        name = _copy_name(address, checksum, version)
        held = self._folder.hold(name, size)
        if held is not None:
            return held
        since, reason = self._failed.get(name, (0.0, ""))
        if reason and time.monotonic() - since < _FAILED_SECONDS:
            raise DataError(reason)
        try:
            return self._fetch(name, address, size, checksum, polite=False)[0]
        except DataError as error:
            if getattr(error.__cause__, "errno", None) not in FULL:  # room may come; the server had its chances
                self._failed[name] = (time.monotonic(), str(error))
            raise

    def prefetch(self, address: str, size: int | None = None, checksum: str | None = None, version: int = 0) -> bool:
        """Makes a copy present without holding it; True if it was downloaded for that.

        Never passes the cache's limit: where all copies are in use it does nothing. Raises what `open` raises.
        """
        name = _copy_name(address, checksum, version)
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


def _copy_name(address: str, checksum: str | None, version: int) -> str:
    """The file name of a copy: without the address's password and query, which may be secret."""
    known = f"{re.sub(r'//[^/@]*@', '//', address)}\n{(checksum or '').lower()}{version or ''}"
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
                LOG.warning("download ahead failed: %s%s", kind, error)
            finally:
                with self._changed:
                    self._running.discard(one[0])
