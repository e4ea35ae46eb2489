"""Walking a tar file: which samples it holds and where their members lie. Any damage is an error that names it."""

import re
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import MmrepError

HEADER_BYTES = _BLOCK = 512
_SIZE = re.compile(rb" *[0-7]*[ \0]*")
_DECIMAL = re.compile(r"[0-9]{1,20}")
_TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)
"""tarfile lets the latter pass where the records of an extended header are damaged."""


class DataError(MmrepError):
    """Bad data: one line that names shard, sample, member and reason."""


class _Header(tarfile.TarInfo):
    """A tar header whose size is octal digits, or a number in base 256.

    tarfile leaves the field to int(), which takes `0o17`, `1_7` and `+17` too: of a damaged header, another number than
    the one written. It takes any damaged size of an extended header for 0.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_Header":  # type: ignore[override]  # stubs: Self
        """See TarInfo.

        Raises:
            ValueError: a damaged size.
        """
        header = super().frombuf(buf, encoding, errors)
        field = bytes(buf[124:136])
        if field[0] not in (0x80, 0xFF) and not _SIZE.fullmatch(field):
            raise ValueError(f"member {header.name!r} has a size that is not octal digits ({field!r})")
        return header


class Layout(NamedTuple):
    """What lies where in a shard.

    Attributes:
        keys: (samples,) keys, UTF-8.
        members: for each extension, (samples, 2) offsets and sizes in bytes; -1 where a sample has no such member.
    """

    keys: NDArray
    members: dict[str, NDArray[np.int64]]


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the name up to the first dot after the last slash, and what follows that dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def is_header_of(header: bytes, name: bytes, size: int) -> bool:
    """Whether a tar header, as it stands before a member's bytes, can be that of a member of this name (in any case)
    and size. Names that tar spells in other ways (long, not ASCII) are not compared."""
    field, found, prefix = header[124:136], header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    digits = field.strip(b"\0 ").lstrip(b"0")
    if not field.startswith(b"\x80") and digits != (b"%o" % size).lstrip(b"0"):  # else a number in base 256
        return False
    plain = name.isascii() and len(name) < 100 and not (header[257:262] == b"ustar" and prefix)
    return not plain or found.lower() == name.lower()


def walk_tar(file: Path, shard: object) -> Layout:
    """Reads every header of a tar file.

    Args:
        file: the tar file.
        shard: what messages call it.

    Raises:
        DataError: not a tar, truncated, a damaged header, a link, a name that leaves the shard's folder or is without
            key or extension, a key whose members are not together, no samples.
    """
    rows: list[tuple[str, dict[str, tuple[int, int]]]] = []
    size, end, last = file.stat().st_size, 0, "the beginning"
    try:
        with tarfile.open(file, "r:", encoding="utf-8", tarinfo=_Header) as tar:
            for member in tar:
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                last = f"member {member.name!r}"
                _check_member(member, size, shard)
                if member.isreg() and not _is_metadata(member.name):
                    _add_member(rows, member, shard)
    except DataError:
        raise
    except _TAR_ERRORS as error:
        with file.open("rb") as opened:
            packed = "; it is gzip-compressed, unpack it first" if opened.read(2) == b"\x1f\x8b" else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{shard}: not a readable tar file after {last}: {reason}{packed}") from error
    _check_end(file, end, last, shard)
    return _layout(rows, shard)


def _check_member(member: tarfile.TarInfo, size: int, shard: object) -> None:
    if not member.isdir() and (not member.isreg() or member.issparse()):
        link = "a link" if member.issym() or member.islnk() else f"of tar type {member.type.decode('latin-1')!r}"
        kind = "sparse" if member.issparse() else link
        raise DataError(f"{shard}: member {member.name!r} is {kind}; store whole files")
    if not _DECIMAL.fullmatch(member.pax_headers.get("size", "0")):
        raise DataError(f"{shard}: member {member.name!r} has a size that is no number: its header is damaged")
    if member.size < 0 or "\0" in member.name:
        wrong = f"a size of {member.size} bytes" if member.size < 0 else "a zero byte in its name"
        raise DataError(f"{shard}: member {member.name!r} has {wrong}: its header is damaged")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise DataError(f"{shard}: member {member.name!r} leaves the shard's folder; store relative names")
    if member.offset_data + member.size > size:
        raise DataError(f"{shard}: truncated within member {member.name!r}")


def _add_member(rows: list[tuple[str, dict[str, tuple[int, int]]]], member: tarfile.TarInfo, shard: object) -> None:
    key, extension = split_name(member.name)
    if not extension or not key.rpartition("/")[2]:
        raise DataError(f"{shard}: member {member.name!r} belongs to no sample: expected KEY.EXTENSION")
    for part, text in (("key", key), ("extension", extension)):
        if any("\ud800" <= character <= "\udfff" for character in text):  # as tarfile writes what it can't decode
            raise DataError(f"{shard}: {part} {text!r} is not UTF-8")
    if not rows or rows[-1][0] != key:
        rows.append((key, {}))
    if extension in rows[-1][1]:
        raise DataError(f"{shard}: key {key!r} has two members {extension!r}")
    rows[-1][1][extension] = (member.offset_data, member.size)


def _is_metadata(name: str) -> bool:
    """Whether a member is one of those that webdataset sets apart from samples, as in `__index__`."""
    return name.startswith("__") and name.endswith("__") and "/" not in name


def _check_end(file: Path, end: int, last: str, shard: object) -> None:
    """tarfile stops silently at a damaged header: after the last member nothing but zeros may follow, a block at
    least."""
    with file.open("rb") as opened:
        opened.seek(end)
        tail = opened.read(_BLOCK)
        if len(tail) < _BLOCK:
            raise DataError(f"{shard}: truncated after {last}: the end-of-archive marker is missing")
        while tail:
            if tail.count(0) != len(tail):
                raise DataError(f"{shard}: damaged header after {last} (byte {end}): later members can't be found")
            tail = opened.read(1 << 20)


def _layout(rows: list[tuple[str, dict[str, tuple[int, int]]]], shard: object) -> Layout:
    if not rows:
        raise DataError(f"{shard}: no samples")
    twice, count = Counter(key for key, _ in rows).most_common(1)[0]
    if count > 1:
        raise DataError(f"{shard}: the members of key {twice!r} are not together (a duplicate key, or a wrong order)")
    extensions = sorted({extension for _, row in rows for extension in row})
    members = {extension: np.full((len(rows), 2), -1, dtype=np.int64) for extension in extensions}
    for i, (_, row) in enumerate(rows):
        for extension, place in row.items():
            members[extension][i] = place
    return Layout(np.array([key.encode() for key, _ in rows]), members)
