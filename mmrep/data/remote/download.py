"""Downloads: failures retried, broken ones resumed, what came verified."""

import hashlib
import random
import re
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from mmrep.config.checks import ConfigError
from mmrep.data.remote.answers import AttemptError, Head, one_line, open_answer, shown
from mmrep.data.tar import DataError

_T = TypeVar("_T")

_ALGORITHMS = ("md5", "sha256", "blake2b")
_PASSING_STATUS = (408, 425, 429)
"""Statuses below 500 that another attempt may cure."""
_LASTING = ("NoCredentialsError", "InvalidURL", "InvalidUrlClientError", "ClientConnectorCertificateError")
"""Errors, by class name (their packages are optional), that another attempt does not cure."""
_LONGEST_WAIT = 60.0
_jitter = random.SystemRandom()
"""Not the global generator, whose state is the run's."""


class Policy(NamedTuple):
    """How patient a download is.

    Attributes:
        retries: attempts after the first.
        timeout: seconds without a byte after which an attempt is given up.
        backoff: seconds before the first retry, doubled before each further one, give or take half.
    """

    retries: int = 5
    timeout: float = 60.0
    backoff: float = 1.0


DEFAULT_POLICY = Policy()


@runtime_checkable
class Sink(Protocol):
    """Where a download goes."""

    def restart(self, total: int | None) -> None:
        """What came before is void; `total` bytes follow, or an unknown number."""

    def write(self, data: bytes) -> None:
        """Appends."""


class _WrongBytesError(Exception):
    """A file other than the expected one came."""


def patiently(address: str, attempt: Callable[[], _T], policy: Policy, got: Callable[[], str] = str) -> _T:
    """What `attempt` returns; tried again, with growing waits, where the remote side fails in a way that may pass.

    Args:
        address: for messages.
        attempt: raises AttemptError where the remote side fails.
        policy: how often.
        got: how far it came, for the message.

    Raises:
        DataError: naming address, attempts and last reason. Its `__cause__` is what the remote side raised.
    """
    for number in range(policy.retries + 1):
        try:
            return attempt()
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


def is_absent(error: BaseException | None) -> bool:
    """Whether an error says that there is no such file, or that it can't be seen.

    Object stores answer 403 instead of 404 to who may not list a bucket.
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
        return f"the server answered {status} {one_line(getattr(error, 'message', ''))}".rstrip() + hint
    if isinstance(error, _WrongBytesError):
        return str(error)
    return one_line(f"{type(error).__name__}: {error}")


def size_of(address: str, policy: Policy) -> int | None:
    """Size of a remote file in bytes; None where the server does not say.

    Raises:
        DataError: see `patiently`.
    """

    def attempt() -> int | None:
        with closing(open_answer(address, 0, None, policy.timeout)) as answer:
            return next(answer).total

    return patiently(address, attempt, policy)


def new_hash(address: str, checksum: str | None) -> Any:
    """The hash that a checksum `ALGORITHM:HEX` asks for, or None.

    Raises:
        ConfigError: another algorithm, not hexadecimal.
    """
    if checksum is None:
        return None
    name, _, value = checksum.partition(":")
    if name not in _ALGORITHMS or not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", value):
        raise ConfigError(f"{shown(address)}: checksum {checksum!r}: expected md5:HEX, sha256:HEX or blake2b:HEX")
    if name == "blake2b":
        return hashlib.blake2b(digest_size=min(len(value) // 2, 64))
    return hashlib.new(name, usedforsecurity=False)


class _Transfer:
    """A download under way: what is there of it, and what the next attempt asks for."""

    def __init__(self, address: str, sink: Sink, size: int | None, checksum: str | None, timeout: float) -> None:
        self.address, self.sink, self.size, self.checksum, self.timeout = address, sink, size, checksum, timeout
        self.attempts = self.got = 0
        self.total = size
        self.version: str | None = None
        self.hash = new_hash(address, checksum)

    def attempt(self) -> int:
        """Goes on where the last attempt broke off; the size of the file once all of it is there and verified."""
        self.attempts += 1
        with closing(open_answer(self.address, self.got, self.version, self.timeout, self.attempts - 1)) as answer:
            self._begin(next(answer))
            for piece in answer:
                self.sink.write(piece)
                self.got += len(piece)
                if self.hash is not None:
                    self.hash.update(piece)
                if self.total is not None and self.got > self.total:
                    raise self._void(f"more than {self.total:,} bytes came")
        if self.total is not None and self.got < self.total:
            raise AttemptError from ConnectionError(f"{self.got:,} of {self.total:,} bytes came")
        if self.hash is not None and self.checksum is not None:
            expected = self.checksum.partition(":")[2].lower()
            if self.hash.hexdigest() != expected:
                raise self._void(f"checksum {self.hash.hexdigest()}, expected {expected}")
        return self.got

    def _begin(self, head: Head) -> None:
        if self.size is not None and head.total not in (None, self.size):
            raise self._void(f"the file has {head.total:,} bytes, expected {self.size:,}")
        if head.start and (head.start != self.got or head.total not in (None, self.total)):
            raise self._void("the file changed while it was downloaded")
        if not head.start:
            self.got, self.hash = 0, new_hash(self.address, self.checksum)
            self.total = head.total if self.size is None else self.size
            self.sink.restart(self.total)
        self.version = head.version

    def _void(self, reason: str) -> AttemptError:
        """The error of an attempt after which nothing of the file can be kept."""
        self.got, self.version = 0, None
        error = AttemptError()
        error.__cause__ = _WrongBytesError(reason)
        return error

    def progress(self) -> str:
        """How far it came, for messages."""
        total = "an unknown number of" if self.total is None else f"{self.total:,}"
        return f", {self.got:,} of {total} bytes got"


def download(address: str, sink: Sink, size: int | None, checksum: str | None, policy: Policy) -> int:
    """Downloads a file, each attempt going on where the last one broke off if the server can, and verifies it.

    Args:
        address: what.
        sink: where to.
        size: bytes expected; None: as many as the server says.
        checksum: `md5:HEX`, `sha256:HEX` or `blake2b:HEX`; None: not checked.
        policy: how patient.

    Returns:
        Bytes of the file.

    Raises:
        ConfigError: a package is missing, a malformed checksum.
        DataError: the remote side failed for good (see `patiently`), or its file isn't the expected one.
    """
    transfer = _Transfer(address, sink, size, checksum, policy.timeout)
    return patiently(address, transfer.attempt, policy, transfer.progress)
