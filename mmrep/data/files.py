"""Local files: names and patterns, regular files only, and arrays (.npz) that are read within their own size."""

import errno
import io
import os
import re
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError, require
from mmrep.files import replacing

_MOST_NAMES = 2_000_000
_RANGE = re.compile(r"\{(-?[0-9]{1,4000})\.\.(-?[0-9]{1,4000})")
ARRAY_ERRORS = (
    OSError, ValueError, TypeError, EOFError, KeyError, IndexError, AttributeError, OverflowError, MemoryError,
    NotImplementedError, RuntimeError, SyntaxError, RecursionError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""Exceptions of zipfile and numpy for damaged files."""


def expand_braces(pattern: str, shown: str) -> list[str]:
    """Return the names that a pattern such as `{0..9}` or `{a,b}` stands for, in their order.

    Args:
        pattern: the pattern.
        shown: the pattern as messages show it.

    Raises:
        ConfigError: unbalanced braces, or more than two million names.
    """
    # Not webdataset's `expand_urls`, which also reads the environment, and splits addresses of fsspec at `::`.
    # Ranges are checked first, because braceexpand makes a list of each.
    wide = any(len(end) > 12 or abs(int(end) - int(start)) > _MOST_NAMES for start, end in _RANGE.findall(pattern))
    try:
        names = [] if wide else list(islice(braceexpand(pattern), _MOST_NAMES + 1))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{shown}: unbalanced braces") from error
    require(not wide and len(names) <= _MOST_NAMES, f"{shown}: expands to more than {_MOST_NAMES:,} names")
    return names


def absolute(path: str) -> str:
    """Return an absolute path without `.` and `..`. Links stay, so that messages show the names that users gave."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.absolute keeps `..`, Path.resolve follows links


def is_blank(text: str) -> bool:
    """Return whether a text shows nothing: it is empty, or only blanks, zeros and other control characters."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def can_be_a_name(path: str) -> bool:
    """Return whether a text can be the path of a file. System calls fail on other texts in many ways."""
    data = path.encode("utf-8", "replace")
    return "\0" not in path and len(data) < 4096 and all(len(part) < 256 for part in data.split(b"/"))


def regular_stat(path: Path) -> os.stat_result:
    """Return the status of a regular file. A device or a pipe is refused: reading it may never end.

    Raises:
        OSError: the file is missing, not a regular file, or its name is impossible.
    """
    try:
        status = path.stat()
    except ValueError as error:
        raise OSError(errno.EINVAL, "a zero byte in its name", str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
    return status


def read_regular(path: Path, most: int | None = None) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: see `regular_stat`; the file can't be read, or has more than `most` bytes.
    """
    size = regular_stat(path).st_size
    if most is not None and size > most:
        raise OSError(f"{size:,} bytes, more than the {most:,} that such a file can have")
    return path.read_bytes()


def write_arrays(arrays: dict[str, Any], place: Path) -> None:
    """Write an .npz file, whole or not at all; raise OSError if that fails."""
    with replacing(place) as part, part.open("wb") as file:
        np.savez(file, **arrays)


@contextmanager
def cache_errors(place: Path) -> Iterator[None]:
    """Turn an OSError of writing a file of the cache into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; MMREP_CACHE moves the cache") from error


def read_arrays(data: bytes) -> dict[str, NDArray] | None:
    """Return the arrays of an .npz file that `write_arrays` has written; None if it is damaged.

    It takes no more memory than the file has bytes, whatever the headers claim. Compressed files are refused, because
    a small one may expand to any size.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > len(data):
                return None
            return {member.filename.removesuffix(".npy"): read_array(archive.read(member)) for member in members}
    except ARRAY_ERRORS:
        return None


def read_array(data: bytes) -> NDArray:
    """Return the array of an .npy file.

    Raises:
        one of ARRAY_ERRORS: the file is damaged, of another length than its header says, or holds objects.
    """
    stream = io.BytesIO(data)
    # Memory is reserved for the shape in the header, but used only as far as the file has bytes.
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):
        raise ValueError("more bytes than its header says")
    return array
