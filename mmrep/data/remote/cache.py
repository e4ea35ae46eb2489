"""A bounded cache of remote shards that all processes of a host share.

Locks belong to the kernel, so a process that is killed holds nothing:

- A copy in use has a shared flock, and is not evicted. (filelock has no shared locks.)
- One process at a time writes a copy; it holds the copy's lock file.
- All room is given out under the lock of the folder. A copy being written counts with its full size from the
  beginning, because its file is extended to that size at once.
"""

import errno
import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from mmrep.config.checks import ConfigError
from mmrep.data.remote.download import DEFAULT_POLICY, Policy, download, shown
from mmrep.data.tar import DataError

LOG = logging.getLogger("mmrep")
_FAILED_SECONDS = 600.0
"""For this time after a failed download, the error is raised again at once: every sample of the shard would retry."""
_COPY = re.compile(r"[0-9a-f]{32}-")
_PART = re.compile(r"\.([0-9a-f]{32}-.*)\.part")
_STEP = 64 << 20
"""Bytes of room that a copy of unknown size takes at a time."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MODE = 0o666
"""Lock files are shared with other users, as far as their umask allows."""


class NoRoomError(Exception):
    """Everything in the cache is in use, and the limit is reached."""


class HeldFile:
    """A file that no process evicts until this object is closed (with `close`, `with`, or the last reference).

    A forked child shares the hold: it ends when both processes have closed it.

    Attributes:
        path: the file.
        descriptor: open for reading.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """End the hold."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            close(descriptor)

    def __enter__(self) -> "HeldFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class ShardCache:
    """A bounded folder of local copies, of which the least recently used are evicted.

    The name of a copy is made of its address and version; a copy of another size than asked for is downloaded anew.
    The limit is exceeded, with one warning, only if everything is in use and a shard is needed now. Files in the
    folder that are not the cache's own are neither counted nor touched.

    Args:
        root: the folder, on a disk of this host. It is made if it does not exist.
        limit_bytes: most bytes of all copies together, including those being downloaded.
        policy: the retry policy of downloads.
    """

    def __init__(self, root: Path, limit_bytes: int, policy: Policy = DEFAULT_POLICY) -> None:
        self.root = root.absolute()
        self.limit = limit_bytes
        self._policy = policy
        self._failed: dict[str, tuple[float, str]] = {}
        self._warned = False

    def open(self, address: str, size: int | None = None, version: int = 0) -> HeldFile:
        """Return the local copy of a remote file, downloading it if necessary. It stays until it is closed.

        Args:
            address: `scheme://…`.
            size: bytes expected, if known.
            version: copies of another version are not used; 0: any.

        Raises:
            DataError: the download failed, the file has another size or is larger than the cache, the disk is full.
            ConfigError: a package is missing, or the folder can't be written.
        """
        name = _copy_name(address, version)
        held = self._hold(name, size)
        if held is not None:
            return held
        since, reason = self._failed.get(name, (0.0, ""))
        if reason and time.monotonic() - since < _FAILED_SECONDS:
            raise DataError(reason)
        try:
            return self._fetch(name, address, size, polite=False)[0]
        except DataError as error:
            if getattr(error.__cause__, "errno", None) not in _FULL:  # a full disk may have room again
                self._failed[name] = (time.monotonic(), str(error))
            raise

    def prefetch(self, address: str, size: int | None = None, version: int = 0) -> bool:
        """Download a copy unless it is there, without holding it; return whether it was downloaded.

        It never exceeds the cache's limit: if all copies are in use, it does nothing. It raises the errors of `open`.
        """
        name = _copy_name(address, version)
        with suppress(OSError):
            if size in (None, (self.root / name).stat().st_size):
                return False
        with suppress(NoRoomError):
            held, downloaded = self._fetch(name, address, size, polite=True)
            held.close()
            return downloaded
        return False

    def take_room(self, descriptor: int, length: int, label: str, polite: bool) -> None:
        """Extend an open file of the folder to `length` bytes, evicting copies for that.

        Raises:
            DataError: `length` alone exceeds the limit.
            NoRoomError: the rest is in use, and `polite` is set; otherwise the limit is exceeded.
        """
        if length > self.limit:
            raise DataError(
                f"{label}: {length:,} bytes, more than the whole cache may take ({self.limit:,}); raise data.cache_gb"
            )
        with self._alone():
            here = os.fstat(descriptor).st_size
            over = self._evict(length - here)
            if over > 0 and polite:
                raise NoRoomError
            if over > 0 and not self._warned:
                self._warned = True
                LOG.warning(
                    "%s: all copies are in use, and the limit of %s bytes is passed by %s; raise data.cache_gb",
                    self.root,
                    f"{self.limit:,}",
                    f"{over:,}",
                )
            os.ftruncate(descriptor, max(length, here))

    def free(self, length: int) -> None:
        """Evict copies of `length` bytes, as far as they are not in use. This helps when the disk is full."""
        with self._alone():
            self._evict(self.limit - sum(size for _, size, _ in self._files()) + length)

    def _fetch(self, name: str, address: str, size: int | None, polite: bool) -> tuple[HeldFile, bool]:
        """Return a held copy, and whether it was downloaded for that."""
        with self._writing(name):
            held = self._hold(name, size)
            if held is not None:
                return held, False
            try:
                part = _Part(self, name, shown(address), polite)
            except OSError as error:
                raise self._unusable(error) from error
            with part:
                download(address, part, size, self._policy)
                return part.finish(), True

    def _hold(self, name: str, size: int | None) -> HeldFile | None:
        """Return a held copy; None if there is none, or one of another size."""
        path = self.root / name
        while True:
            try:
                descriptor = os.open(path, os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise self._unusable(error) from error
            held = HeldFile(path, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # Between open and lock the copy may have been evicted or replaced.
            if _lies_at(descriptor, path):
                status = os.fstat(descriptor)
                if size is not None and status.st_size != size:
                    return None
                # Set explicitly, since many mounts don't update access times. The time of change is the copy's stamp.
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
                return held

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Wait until no other process writes a copy, then keep others out."""
        lock = FileLock(self.root / f".{name}.lock", mode=_MODE)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield
        finally:
            # Removed while it is held: a waiting process notices, and locks a new file.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def _alone(self) -> FileLock:
        return FileLock(self.root / ".lock", mode=_MODE)

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return (time of last use, size, path) of all copies and parts."""
        files = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if _COPY.match(entry.name) or _PART.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # renamed by its writer, and listed under its new name
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_atime_ns, status.st_size, Path(entry.path)))
        return files

    def _evict(self, extra: int) -> int:
        """Make room for `extra` bytes; return the bytes by which they would still exceed the limit."""
        files = self._files()
        over = sum(size for _, size, _ in files) + extra - self.limit
        # Parts of dead processes go first, then copies by time of last use.
        for _, size, path in sorted(files, key=lambda file: (not _PART.fullmatch(file[2].name), file)):
            if over <= 0:
                break
            part = _PART.fullmatch(path.name)
            if self._drop_part(path, part[1]) if part else remove_unused(path):
                over -= size
        return over

    def _drop_part(self, path: Path, name: str) -> bool:
        """Remove a part unless its writer lives, who would hold its lock; return whether it was removed."""
        lock = FileLock(self.root / f".{name}.lock", mode=_MODE, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        path.unlink(missing_ok=True)
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
        return True

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.root}: {error.strerror}; data.cache_dir or MMREP_CACHE moves the cache")


class _Part:
    """A copy being written: the sink of a download. `finish` turns it into a copy; otherwise it is removed.

    Args:
        cache: the cache.
        name: name of the copy.
        label: its name in messages.
        polite: raise NoRoomError rather than exceed the cache's limit.
    """

    def __init__(self, cache: ShardCache, name: str, label: str, polite: bool) -> None:
        self.cache, self.name, self.label, self.polite = cache, name, label, polite
        self.path = cache.root / f".{name}.part"
        self._file = self.path.open("w+b", buffering=0)
        self._room = 0
        self._total: int | None = None

    def restart(self, total: int | None) -> None:
        """Forget what was written, and take room for all of the file at once; see `ShardCache.take_room`."""
        self._file.seek(0)
        self._total = total
        if total is not None:
            self._take(total)

    def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            DataError: the disk is full even after all unused copies were evicted; see also `restart`.
        """
        end = self._file.tell() + len(data)
        if self._total is None and end > self._room:
            self._take(max(end, min(self._file.tell() + _STEP, self.cache.limit)))
        self._on_disk(lambda: self._write(data))

    def finish(self) -> HeldFile:
        """Move the copy to its place, and return it held."""
        self._on_disk(lambda: self._file.truncate(self._file.tell()))
        self._on_disk(lambda: os.fsync(self._file.fileno()))
        held = HeldFile(self.cache.root / self.name, os.open(self.path, os.O_RDONLY))
        # Held before others can see it, so that it can't be evicted before it is used.
        fcntl.flock(held.descriptor, fcntl.LOCK_SH)
        self.path.replace(held.path)
        return held

    def __enter__(self) -> "_Part":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _take(self, length: int) -> None:
        self._on_disk(lambda: self.cache.take_room(self._file.fileno(), length, self.label, self.polite))
        self._room = max(self._room, length)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _on_disk(self, action: Callable[[], object]) -> None:
        """Run an action; if the disk is full, evict copies and run it once more."""
        start = self._file.tell()
        try:
            try:
                action()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self.cache.free(max((self._total or 0) - start, _STEP))
                self._file.seek(start)
                action()
        except OSError as error:
            raise DataError(
                f"{self.cache.root}: {error.strerror}, after {self._file.tell():,} bytes of {self.label}; free some "
                "space, lower data.cache_gb, or move the cache (data.cache_dir, MMREP_CACHE)"
            ) from error


def _copy_name(address: str, version: int) -> str:
    """Return the file name of a copy, without the address's password and query, which may be secret."""
    known = f"{re.sub(r'//[^/@]*@', '//', address)}\n{version or ''}"
    digest = hashlib.blake2b(known.encode(), digest_size=16).hexdigest()
    return f"{digest}-{re.sub(r'[^A-Za-z0-9._-]', '_', shown(address).rpartition('/')[2])[-100:]}"


def _lies_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file still has this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def remove_unused(path: Path) -> bool:
    """Remove a file unless a process holds a lock on it; return whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _lies_at(descriptor, path)
        if free:
            path.unlink()
        return free
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
