"""Remote addresses: what is one, what stands behind a pattern, small files."""

import re
from typing import Literal, overload

from mmrep.config.checks import ConfigError
from mmrep.data.remote.answers import AttemptError, answers, filesystem, shown
from mmrep.data.remote.download import DEFAULT_POLICY, Policy, download, is_absent, patiently, size_of
from mmrep.data.spelling import expand_braces
from mmrep.data.tar import DataError

_SMALL_FILE = 256 << 20


def is_remote(address: str) -> bool:
    """Whether it is an address with a scheme (`scheme://…`); never so for `pipe:`, which would run a shell."""
    return bool(re.match(r"(?!pipe:)[A-Za-z][\w+.-]*(::[\w+.-]+)*://", address))


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
    names = expand_braces(pattern, shown(pattern))
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


def remote_folders(address: str, policy: Policy = DEFAULT_POLICY) -> list[str] | None:
    """The names of the folders in a remote folder, sorted, for messages; None where it can't be listed.

    Raises:
        ConfigError: a package is missing.
    """
    fs, path = filesystem(address)
    try:
        entries = next(answers(address, lambda put: put(fs.ls(path, detail=True)), policy.timeout))
    except AttemptError:
        return None
    return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")


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
