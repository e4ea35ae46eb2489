"""Only regular files are read: a device or a pipe that a file of others names has no end."""

import errno
import os
import stat
from pathlib import Path


def can_be_a_name(path: str) -> bool:
    """Return whether a text can be the path of a file: functions of the system fail on others, in many ways."""
    data = path.encode("utf-8", "replace")
    return "\0" not in path and len(data) < 4096 and all(len(part) < 256 for part in data.split(b"/"))


def regular_stat(path: Path) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        OSError: it is gone, something else than a file, or no name of a file at all.
    """
    try:
        status = path.stat()
    except ValueError as error:
        raise OSError(errno.EINVAL, "a zero byte in its name", str(path)) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise OSError(errno.EINVAL, f"{kind}, not a regular file", str(path))
    return status


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: see `regular_stat`; it can't be read.
    """
    regular_stat(path)
    return path.read_bytes()
