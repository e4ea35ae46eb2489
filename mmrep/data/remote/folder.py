"""A folder of bounded size that processes of a host share: copies in use are locked, the others go, oldest use first.

A copy is in use while someone holds a shared flock on it, which the kernel drops whenever the holder dies. One process
at a time writes a copy, under an exclusive flock on its lock file. All room is given out under the folder's own lock:
a copy being written counts with its full size from the beginning, since its file is extended to that at once.
"""

import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from mmrep.config.checks import ConfigError
from mmrep.data.remote.locks import HeldFile, lies_at, locked, private, try_lock
from mmrep.data.tar import DataError

LOG = logging.getLogger("mmrep")
_COPY = re.compile(r"[0-9a-f]{32}-")
_PART = re.compile(r"\.([0-9a-f]{32}-.*)\.part")
_STEP = 64 << 20
"""Room taken at a time by a copy of unknown size."""
FULL = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(Exception):
    """Everything in the folder is in use, and the limit is reached."""


class CacheFolder:
    """The folder.

    Args:
        root: where it is; on a disk of this host (flock does not reach other hosts on every network file system).
            Files that are not the cache's own are neither counted nor touched.
        limit_bytes: the limit, over copies and what is being written.
    """

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root = root.absolute()
        self.limit = limit_bytes
        self._warned = False

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Waits until nobody else writes the copy `name` (32 hexadecimal digits, `-`, anything), then keeps others out.

        Raises:
            ConfigError: the folder can't be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = locked(self.root / f".{name}.lock")
            lock.__enter__()
        except OSError as error:
            raise self._unusable(error) from error
        try:
            yield
        finally:
            lock.__exit__(None, None, None)

    def hold(self, name: str, size: int | None) -> HeldFile | None:
        """A copy, held; None where there is none, or one of another size."""
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
            # Between open and lock it may have been evicted, or replaced.
            if lies_at(descriptor, path):
                status = os.fstat(descriptor)
                if size is not None and status.st_size != size:
                    return None
                # Set explicitly: mounts don't keep access times faithfully; the time of change stays the copy's stamp.
                os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
                return held

    def has(self, name: str, size: int | None) -> bool:
        """Whether a copy (of that size) is there now."""
        with suppress(OSError):
            return size in (None, (self.root / name).stat().st_size)
        return False

    def part(self, name: str, label: str, polite: bool) -> "Part":
        """A new copy to be written, within `writing`; see `Part`."""
        try:
            return Part(self, name, label, polite)
        except OSError as error:
            raise self._unusable(error) from error

    def take_room(self, descriptor: int, length: int, what: str, must: bool) -> None:
        """Extends an open file of the folder to `length` bytes, evicting what has to go.

        Where all the rest is in use, the limit is passed with one warning, or kept: a run must go on, and what is only
        fetched ahead need not.

        Raises:
            DataError: `length` alone is more than the limit.
            NoRoomError: no room, and not `must`.
        """
        if length > self.limit:
            raise DataError(
                f"{what}: {length:,} bytes, more than the whole cache may take ({self.limit:,}); raise data.cache_gb"
            )
        with self._alone():
            here = os.fstat(descriptor).st_size
            over = self._evict(length - here)
            if over > 0 and not must:
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
        """Evicts until `length` bytes less are taken, or all that is left is in use; for a disk that is full."""
        with self._alone():
            self._evict(self.limit - self._used() + length)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        private.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            private.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _files(self) -> list[tuple[int, int, Path]]:
        """(time of last use, size, path) of copies and parts."""
        files = []
        with os.scandir(self.root) as entries:
            for entry in entries:
                if _COPY.match(entry.name) or _PART.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # renamed by its writer, and listed under its new name
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_atime_ns, status.st_size, Path(entry.path)))
        return files

    def _used(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _evict(self, extra: int) -> int:
        """Makes room for `extra` bytes; returns the bytes by which they would still pass the limit."""
        files = self._files()
        over = sum(size for _, size, _ in files) + extra - self.limit
        for _, size, path in sorted(files, key=lambda file: (not _PART.fullmatch(file[2].name), file)):
            if over <= 0:
                break
            part = _PART.fullmatch(path.name)
            if self._drop_part(path, part[1]) if part else self._drop_copy(path):
                over -= size
        return over

    def _drop_part(self, path: Path, name: str) -> bool:
        """Removes what a dead process was writing: nobody holds its lock."""
        with locked(self.root / f".{name}.lock", wait=False) as dead:
            if dead:
                path.unlink(missing_ok=True)
        return dead

    def _drop_copy(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            free = try_lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and lies_at(descriptor, path)
            if free:
                path.unlink()
            return free
        finally:
            os.close(descriptor)

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.root}: {error.strerror}; data.cache_dir or MMREP_CACHE moves the cache")


class Part:
    """A copy being written: a `Sink` of downloads.

    Use as a context; `finish` makes it a copy, without that nothing stays.

    Args:
        folder: where.
        name: the copy's name.
        label: what to call it in messages.
        polite: rather raises NoRoomError than passes the folder's limit.
    """

    def __init__(self, folder: CacheFolder, name: str, label: str, polite: bool) -> None:
        self.folder, self.name, self.label, self.polite = folder, name, label, polite
        self.path = folder.root / f".{name}.part"
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        private.add(self._descriptor)
        self._position = self._room = 0
        self._total: int | None = None

    def restart(self, total: int | None) -> None:
        """See `Sink`; takes room for all of it at once.

        Raises:
            DataError, NoRoomError: see `CacheFolder.take_room`.
        """
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._position, self._total = 0, total
        if total is not None:
            self._take(total)

    def write(self, data: bytes) -> None:
        """See `Sink`.

        Raises:
            DataError: the disk is full even after all copies that nobody uses have gone; see also `restart`.
        """
        if self._total is None and self._position + len(data) > self._room:
            self._take(max(self._position + len(data), min(self._position + _STEP, self.folder.limit)))
        self._on_disk(lambda: self._write(data))

    def finish(self) -> HeldFile:
        """Puts the copy in its place, and holds it."""
        self._on_disk(lambda: os.ftruncate(self._descriptor, self._position))
        self._on_disk(lambda: os.fsync(self._descriptor))
        held = HeldFile(self.folder.root / self.name, os.open(self.path, os.O_RDONLY))
        # Held before others can see it, so that it can't be gone before it is used.
        fcntl.flock(held.descriptor, fcntl.LOCK_SH)
        self.path.replace(held.path)
        return held

    def __enter__(self) -> "Part":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        private.discard(self._descriptor)
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def _take(self, length: int) -> None:
        self._on_disk(lambda: self.folder.take_room(self._descriptor, length, self.label, not self.polite))
        self._room = max(self._room, length)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            done = os.write(self._descriptor, rest)
            self._position += done
            rest = rest[done:]

    def _on_disk(self, action: Callable[[], object]) -> None:
        start = self._position
        try:
            try:
                action()
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.folder.free(max((self._total or 0) - start, _STEP))
                self._position = os.lseek(self._descriptor, start, os.SEEK_SET)
                action()
        except OSError as error:
            raise DataError(
                f"{self.folder.root}: {error.strerror}, after {self._position:,} bytes of {self.label}; free some "
                "space, lower data.cache_gb, or move the cache (data.cache_dir, MMREP_CACHE)"
            ) from error
