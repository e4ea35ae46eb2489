"""Locks on files, which the processes of a host share and the kernel drops whenever their holder dies."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

private: set[int] = set()
"""Descriptors that children forked meanwhile must not keep: exclusive locks, files being written."""


def _close_private() -> None:
    """A forked child shares its parent's locks: unless it closes them, they outlive a parent that is killed."""
    for descriptor in private:
        os.close(descriptor)
    private.clear()


os.register_at_fork(after_in_child=_close_private)


class HeldFile:
    """A file that no process evicts until this is closed (with `close`, `with`, or the last reference).

    A forked child shares the hold: it ends when both have closed it.

    Attributes:
        path: the file.
        descriptor: open for reading.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """Ends the hold."""
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


def lies_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """An exclusive lock by a lock file, which is removed in the end; yields whether it was got."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        private.add(descriptor)
        try:
            got = try_lock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if got and not lies_at(descriptor, path):
                continue  # who had the lock before removed the file, and a third may hold its successor
            try:
                yield got
            finally:
                if got:
                    path.unlink()
            return
        finally:
            private.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone would leave it to children forked meanwhile
            os.close(descriptor)
