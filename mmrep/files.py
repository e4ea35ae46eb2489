"""Files and folders that are written as a whole or not at all, and the lock on a folder that a process writes to."""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmrep.config.checks import ConfigError, MmrepError

LOG = logging.getLogger("mmrep")

LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class WriteError(MmrepError):
    """A file could not be written: the disk is full or the folder is read-only. Exit status 1."""


class Busy(ConfigError):
    """Another process writes to the folder. Exit status 2."""


class DamagedFile(MmrepError):
    """A file is empty, truncated, or has other content than expected. Exit status 1."""


@contextmanager
def write_errors(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Turn errors of writing within this context into one line that names the file and what to do.

    Args:
        path: the file or folder that is written.
        also: exceptions besides OSError that a writer raises when it cannot write.

    Raises:
        WriteError: the file could not be written.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        code = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors says it
        number = int(code[1]) if code else getattr(error, "errno", None)
        advice = "; free some space, then run the same command again" if number in _FULL else ""
        if number in _CLOSED:
            advice = "; make the folder writable, or choose another one"
        raise WriteError(f"{path}: can't be written: {reason}{advice}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` after the block, or is removed if an error is raised.

    A crash of the machine may leave a damaged file: this is for caches, whose readers notice that. `whole_file` waits
    for the disk.
    """
    part = path.with_name(f".writing-{path.name}-{uuid.uuid4().hex}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a place to write to; the file gets its name once it is complete and on the disk.

    Raises:
        WriteError: it could not be written; an older file of that name stays.
    """
    with write_errors(path):
        with replacing(path) as part:
            yield part
            flush(part)
        flush(path.parent)


@contextmanager
def whole_folder(path: Path, *also: type[Exception]) -> Iterator[Path]:
    """Yield an empty temporary folder to fill. It gets its name once its files are complete and on the disk.

    Args:
        path: the folder. An existing one is replaced.
        also: see `write_errors`.

    Raises:
        WriteError: the folder could not be written. An older folder of that name stays.
    """
    aside, old = (path.with_name(f".{what}-{path.name}") for what in ("writing", "old"))
    with write_errors(path, *also):
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            yield aside
            for place in sorted(aside.rglob("*")):
                flush(place)
            flush(aside)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            aside.rename(path)
            flush(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole; see `whole_file`."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write a JSON file as a whole; see `whole_file`."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: the file is empty, truncated, or no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        empty = isinstance(error, ValueError) and path.stat().st_size == 0
        raise DamagedFile(f"{path}: {'empty' if empty else 'cut off or damaged, not JSON'}") from error
    if not isinstance(content, dict):
        raise DamagedFile(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a file of JSON lines. Damaged lines are left out with a warning."""
    found, damaged = [], 0
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    for line in lines[:-1]:
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            found.append(content)
        else:
            damaged += 1
    if damaged:
        LOG.warning("%s: %d damaged lines are left out", path, damaged)
    return found


@contextmanager
def locked(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Keep other processes out of a folder, which is made if it is missing.

    The operating system releases the lock when the process that holds it ends. Child processes do not inherit it.

    Args:
        folder: the folder.
        timeout: seconds to wait for another process that holds the lock.

    Raises:
        Busy: another process holds the lock.
        WriteError: the folder cannot be written to.
    """
    place = folder / LOCK
    made = not folder.exists()
    lock = FileLock(place, timeout=timeout)
    with write_errors(place):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            try:
                lock.acquire()
            except FileNotFoundError:  # the last holder has just removed the folder, since nothing came of it
                folder.mkdir(parents=True, exist_ok=True)
                lock.acquire()
        except Timeout as error:
            holder = place.read_text(encoding="utf-8", errors="replace")[:200].strip() or "another process"
            raise Busy(
                f"{folder}: {holder} is writing there; wait for it, stop it, or choose another --output_dir"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            LOG.warning("%s: this file system has no locks (%s): start no second run there", folder, error.strerror)
        folder.mkdir(parents=True, exist_ok=True)
        place.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
    try:
        yield
    finally:
        if made and [each.name for each in folder.iterdir()] == [LOCK]:
            with contextlib.suppress(OSError):  # nothing came of it: leave no empty folder
                place.unlink()
                folder.rmdir()
        lock.release()
