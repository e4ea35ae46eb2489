"""Walk a tar file: find its samples and the places of their members. Any damage is an error that names it."""

import re
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import MmrepError

HEADER_BYTES = _BLOCK = 512
_SIZE = re.compile(rb" *[0-7]*[ \0]*")
_DECIMAL = re.compile(r"[0-9]{1,20}")
_TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)
"""Exceptions of tarfile. All but the first come from damaged records of an extended header."""

Rows = list[tuple[str, dict[str, tuple[int, int]]]]
"""Samples in the order of the tar: the key, and for each extension the offset and size of the member."""


class DataError(MmrepError):
    """Bad data: one line that names shard, sample, member and reason."""


class _Header(tarfile.TarInfo):
    """A tar header whose size must be octal digits or a number in base 256.

    tarfile passes the field to int(), which also accepts `0o17`, `1_7` and `+17`: in a damaged header, another number
    than the one written. It reads any damaged size of an extended header as 0.
    """

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_Header":  # type: ignore[override]  # stubs: Self
        """See TarInfo; raises ValueError for a damaged size."""
        header = super().frombuf(buf, encoding, errors)
        field = bytes(buf[124:136])
        if field[0] not in (0x80, 0xFF) and not _SIZE.fullmatch(field):
            raise ValueError(f"member {header.name!r} has a size that is not octal digits ({field!r})")
        return header


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member. The extension begins at the first dot after the last slash."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def is_header_of(header: bytes, name: bytes, size: int) -> bool:
    """Return whether a tar header can be that of a member of this name (in any case) and size.

    Names that tar stores in other ways (long, or not ASCII) are not compared.
    """
    field, found, prefix = header[124:136], header[:100].rstrip(b"\0"), header[345:500].rstrip(b"\0")
    digits = field.strip(b"\0 ").lstrip(b"0")
    if not field.startswith(b"\x80") and digits != (b"%o" % size).lstrip(b"0"):  # else a number in base 256
        return False
    plain = name.isascii() and len(name) < 100 and not (header[257:262] == b"ustar" and prefix)
    return not plain or found.lower() == name.lower()


def walk_tar(file: Path, shard: object) -> tuple[NDArray, dict[str, NDArray[np.int64]]]:
    """Read every header of a tar file.

    Args:
        file: the tar file.
        shard: its name in messages.

    Returns:
        The (samples,) keys in UTF-8; and for each extension the (samples, 2) offsets and sizes in bytes, -1 where a
        sample has no such member.

    Raises:
        DataError: not a tar, truncated, a damaged header, a link, a name that leaves the shard's folder or is without
            key or extension, a key whose members are not together, no samples.
    """
    rows: Rows = []
    size, end, last = file.stat().st_size, 0, "the beginning"
    try:
        with tarfile.open(file, "r:", encoding="utf-8", tarinfo=_Header) as tar:
            for member in tar:
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                last = f"member {member.name!r}"
                _check_member(member, size, shard)
                # webdataset does not count members such as `__index__` as samples.
                metadata = member.name.startswith("__") and member.name.endswith("__") and "/" not in member.name
                if member.isreg() and not metadata:
                    _add_member(rows, member, shard)
    except DataError:
        raise
    except _TAR_ERRORS as error:
        with file.open("rb") as opened:
            packed = "; it is gzip-compressed, unpack it first" if opened.read(2) == b"\x1f\x8b" else ""
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{shard}: not a readable tar file after {last}: {reason}{packed}") from error
    _check_end(file, end, last, shard)
    if not rows:
        raise DataError(f"{shard}: no samples")
    twice, count = Counter(key for key, _ in rows).most_common(1)[0]
    if count > 1:
        raise DataError(f"{shard}: the members of key {twice!r} are not together (a duplicate key, or a wrong order)")
    return np.array([key.encode() for key, _ in rows]), _places(rows)


def _check_member(member: tarfile.TarInfo, size: int, shard: object) -> None:
    if not member.isdir() and (not member.isreg() or member.issparse()):
        link = "a link" if member.issym() or member.islnk() else f"of tar type {member.type.decode('latin-1')!r}"
        kind = "sparse" if member.issparse() else link
        raise DataError(f"{shard}: member {member.name!r} is {kind}; store whole files")
    if not _DECIMAL.fullmatch(member.pax_headers.get("size", "0")):
        raise DataError(f"{shard}: member {member.name!r} has a size that is not a number: its header is damaged")
    if member.size < 0 or "\0" in member.name:
        wrong = f"a size of {member.size} bytes" if member.size < 0 else "a zero byte in its name"
        raise DataError(f"{shard}: member {member.name!r} has {wrong}: its header is damaged")
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise DataError(f"{shard}: member {member.name!r} leaves the shard's folder; store relative names")
    if member.offset_data + member.size > size:
        raise DataError(f"{shard}: truncated within member {member.name!r}")


def _add_member(rows: Rows, member: tarfile.TarInfo, shard: object) -> None:
    key, extension = split_name(member.name)
    if not extension or not key.rpartition("/")[2]:
        raise DataError(f"{shard}: member {member.name!r} belongs to no sample: expected KEY.EXTENSION")
    for part, text in (("key", key), ("extension", extension)):
        if any("\ud800" <= character <= "\udfff" for character in text):  # tarfile's spelling of undecodable bytes
            raise DataError(f"{shard}: {part} {text!r} is not UTF-8")
    if not rows or rows[-1][0] != key:
        rows.append((key, {}))
    if extension in rows[-1][1]:
        raise DataError(f"{shard}: key {key!r} has two members {extension!r}")
    rows[-1][1][extension] = (member.offset_data, member.size)


def _check_end(file: Path, end: int, last: str, shard: object) -> None:
    """Check that at least one block of zeros, and nothing else, follows the last member.

    tarfile stops silently at a damaged header.
    """
    with file.open("rb") as opened:
        opened.seek(end)
        tail = opened.read(_BLOCK)
        if len(tail) < _BLOCK:
            raise DataError(f"{shard}: truncated after {last}: the end-of-archive marker is missing")
        while tail:
            if tail.count(0) != len(tail):
                raise DataError(f"{shard}: damaged header after {last} (byte {end}): later members can't be found")
            tail = opened.read(1 << 20)


def _places(rows: Rows) -> dict[str, NDArray[np.int64]]:
    extensions = sorted({extension for _, row in rows for extension in row})
    members = {extension: np.full((len(rows), 2), -1, dtype=np.int64) for extension in extensions}
    for i, (_, row) in enumerate(rows):
        for extension, place in row.items():
            members[extension][i] = place
    return members
