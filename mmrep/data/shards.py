"""WebDataset tar shards: indexed once, read by offset."""

import hashlib
import os
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.data.cache import cache_root

INDEX_VERSION = 1
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512


class DataError(MmrepError):
    """Bad data: one line that names shard, sample, member and reason."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the members of a shard lie.

    Attributes:
        path: the tar file.
        keys: (samples,) keys, UTF-8.
        members: for each extension, (samples, 2) offsets and sizes in bytes; -1 where a sample has no such member.
        digest: of keys, extensions, offsets and sizes; not of path or time.
        stamp: size in bytes and time of change (ns) of the file when it was indexed.
    """

    path: Path
    keys: NDArray
    members: dict[str, NDArray[np.int64]]
    digest: str
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return len(self.keys)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the name up to the first dot after the last slash, and what follows that dot."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def build_index(path: Path) -> ShardIndex:
    """Walks a tar file once.

    Raises:
        DataError: not a tar, truncated, a damaged header, a link, a name without key or extension, a key whose
            members are not together, no samples.
    """
    keys: list[str] = []
    rows: list[dict[str, tuple[int, int]]] = []
    stamp = _stamp(path)
    size, end, last = stamp[0], 0, "the beginning"
    try:
        with tarfile.open(path, "r:", encoding="utf-8") as tar:
            for member in tar:
                if member.issym() or member.islnk() or member.issparse():
                    kind = "sparse" if member.issparse() else "a link"
                    raise DataError(f"{path}: member {member.name!r} is {kind}; store whole files")
                end = member.offset_data + (-(-member.size // _BLOCK) * _BLOCK if member.isreg() else 0)
                last = f"member {member.name!r}"
                if member.offset_data + member.size > size:
                    raise DataError(f"{path}: truncated within {last}")
                if not member.isreg() or _is_metadata(member.name):
                    continue
                key, extension = split_name(member.name)
                if not extension or not key.rpartition("/")[2]:
                    raise DataError(f"{path}: member {member.name!r} belongs to no sample: expected KEY.EXTENSION")
                if not keys or keys[-1] != key:
                    keys.append(key)
                    rows.append({})
                if extension in rows[-1]:
                    raise DataError(f"{path}: key {key!r} has two members {extension!r}")
                rows[-1][extension] = (member.offset_data, member.size)
    except tarfile.TarError as error:
        with path.open("rb") as file:
            packed = "; it is gzip-compressed, unpack it first" if file.read(2) == b"\x1f\x8b" else ""
        raise DataError(f"{path}: not a readable tar file after {last}: {error}{packed}") from error
    _check_end(path, end, last)
    if not keys:
        raise DataError(f"{path}: no samples")
    if len(set(keys)) != len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise DataError(f"{path}: the members of key {twice!r} are not together (a duplicate key, or a wrong order)")
    members = {extension: np.full((len(keys), 2), -1, dtype=np.int64) for extension in sorted(set().union(*rows))}
    for i, row in enumerate(rows):
        for extension, place in row.items():
            members[extension][i] = place
    try:
        names = np.array([key.encode() for key in keys])
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: key {error.object!r} is not UTF-8") from error
    return ShardIndex(path, names, members, _digest(names, members), stamp)


def _is_metadata(name: str) -> bool:
    """Whether a member is one of those that webdataset sets apart from samples, as in `__index__`."""
    return name.startswith("__") and name.endswith("__") and "/" not in name


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _check_end(path: Path, end: int, last: str) -> None:
    """tarfile stops silently at a damaged header: after the last member nothing but zeros may follow, a block at
    least."""
    with path.open("rb") as file:
        file.seek(end)
        tail = file.read(_BLOCK)
        if len(tail) < _BLOCK:
            raise DataError(f"{path}: truncated after {last}: the end-of-archive marker is missing")
        while tail:
            if tail.count(0) != len(tail):
                raise DataError(f"{path}: damaged header after {last} (byte {end}): later members can't be found")
            tail = file.read(1 << 20)


def _digest(keys: NDArray, members: dict[str, NDArray[np.int64]]) -> str:
    state = hashlib.blake2b(digest_size=16)
    state.update(b"\n".join(keys.tolist()))
    for extension, places in members.items():
        state.update(extension.encode() + places.astype("<i8").tobytes())
    return state.hexdigest()


def sidecar(path: Path) -> Path:
    """The index file beside a shard, as `mmrep data index` writes it."""
    return path.with_name(path.name + ".index.npz")


def cached_sidecar(path: Path) -> Path:
    """The index file in the cache, where nothing lies beside the shard."""
    name = hashlib.blake2b(str(path.absolute()).encode(), digest_size=16).hexdigest()
    return cache_root() / "index" / f"{name}.npz"


def load_index(path: Path) -> ShardIndex:
    """The index of a shard: from the file beside it, from the cache, or built now and cached.

    Raises:
        DataError: see `build_index`; unreadable file.
    """
    try:
        for place in (sidecar(path), cached_sidecar(path)):
            index = _read_index(path, place)
            if index is not None:
                return index
        index = build_index(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    try:
        write_index(index, cached_sidecar(path))
    except OSError as error:
        raise ConfigError(f"{cached_sidecar(path)}: {error.strerror}; MMREP_CACHE moves the cache") from error
    return index


def write_index(index: ShardIndex, place: Path) -> None:
    """Writes an index file: into a temporary one, then renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"member:{extension}": places for extension, places in index.members.items()}
    arrays["keys"] = index.keys
    arrays["stamp"] = np.array([INDEX_VERSION, *index.stamp])
    arrays["digest"] = np.array(index.digest)
    # Not tempfile, whose files nobody else may read: shards and their indexes are shared.
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def _read_index(path: Path, place: Path) -> ShardIndex | None:
    """The index in an index file; None where there is none, or the shard has changed since."""
    if not place.is_file():
        return None
    stamp = _stamp(path)
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if arrays["stamp"].tolist() != [INDEX_VERSION, *stamp]:
                return None
            members = {
                name.removeprefix("member:"): arrays[name] for name in arrays.files if name.startswith("member:")
            }
            index = ShardIndex(path, arrays["keys"], members, str(arrays["digest"]), stamp)
            intact = index.digest == _digest(index.keys, members)
    except Exception:
        return None  # a damaged index, which numpy and zipfile have many errors for, is built again
    return index if intact else None


class _OpenFile:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)


@lru_cache(maxsize=64)
def _open(path: Path, stamp: tuple[int, int]) -> _OpenFile:  # noqa: ARG001  # part of the cache's key
    """The file of a shard; `stamp` tells a shard from one that it has replaced."""
    return _OpenFile(path)


def read_member(index: ShardIndex, sample: int, extension: str) -> bytes:
    """The bytes of one member.

    Raises:
        DataError: the sample has no such member, or the shard ends before it.
    """
    key = index.keys[sample].decode()
    offset, size = index.members[extension][sample] if extension in index.members else (-1, -1)
    if offset < 0:
        here = [name for name, places in index.members.items() if places[sample, 0] >= 0]
        raise DataError(f"{index.path}: sample {key!r} has no member {extension!r} (it has {', '.join(here)})")
    try:
        data = os.pread(_open(index.path, index.stamp).descriptor, size, offset)
    except OSError as error:
        raise DataError(f"{index.path}: sample {key!r}, member {extension!r}: {error.strerror}") from error
    if len(data) != size:
        raise DataError(f"{index.path}: truncated: sample {key!r}, member {extension!r}: {len(data)} of {size} bytes")
    return data


def image_extension(index: ShardIndex, sample: int) -> str:
    """The extension of a sample's image.

    Raises:
        DataError: the sample has no image.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in index.members and index.members[extension][sample, 0] >= 0:
            return extension
    here = [name for name, places in index.members.items() if places[sample, 0] >= 0]
    key = index.keys[sample].decode()
    raise DataError(
        f"{index.path}: sample {key!r} has no image ({', '.join(IMAGE_EXTENSIONS)}); it has {', '.join(here)}"
    )
