"""WebDataset shards: indexed once, read by offset."""

import hashlib
import io
import logging
import os
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError
from mmrep.data.cache import cache_root
from mmrep.data.tar import DataError, walk_tar

if TYPE_CHECKING:
    from mmrep.data.remote import HeldFile, ShardCache

LOG = logging.getLogger("mmrep")

INDEX_VERSION = 1
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SIDECAR = ".index.npz"
_OPEN_FILES = 128
_ARRAY_ERRORS = (
    OSError, ValueError, TypeError, EOFError, KeyError, AttributeError, NotImplementedError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


class Stopwatch:
    """Time that this process has spent on something."""

    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time within."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


DOWNLOADS = Stopwatch()
"""Waiting for remote shards."""


@dataclass(frozen=True)
class RemoteShard:
    """A shard behind an fsspec address, read through a bounded local cache.

    Attributes:
        address: protocol and path.
        cache: where local copies lie.
        size: in bytes; None where it is not known beforehand.
        checksum: `md5:HEX` or the like; None where it is not known.
    """

    address: str
    cache: "ShardCache" = field(compare=False, repr=False)
    size: int | None = None
    checksum: str | None = None

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.address.rpartition("/")[2]

    def __str__(self) -> str:
        return self.address

    def open(self) -> "HeldFile":
        """A local copy, kept until it is closed."""
        with DOWNLOADS.running():
            return self.cache.open(self.address, self.size, self.checksum)


Shard = Path | RemoteShard


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Where the members of a shard lie.

    Attributes:
        path: the tar file, or its address.
        keys: (samples,) keys, UTF-8.
        members: for each extension, (samples, 2) offsets and sizes in bytes; -1 where a sample has no such member.
        digest: of keys, extensions, offsets and sizes; not of path or time.
        stamp: size in bytes and time of change (ns; 0 for remote shards) of the file when it was indexed.
        crcs: for each extension, (samples,) CRC-32 of the bytes, where `mmrep data index` has taken them; else empty.
    """

    path: Shard
    keys: NDArray
    members: dict[str, NDArray[np.int64]]
    digest: str
    stamp: tuple[int, int]
    crcs: dict[str, NDArray[np.uint32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        arrays = [self.keys, *self.members.values(), *self.crcs.values()]
        return sum(array.nbytes for array in arrays)

    def sample(self, row: int) -> str:
        """What messages call a sample."""
        return f"{self.path}: sample {self.keys[row].decode()!r}"


def build_index(path: Path) -> ShardIndex:
    """Walks a local tar file once; see `walk_tar` for what it refuses."""
    return _index(path, path, _stamp(path))


def _index(file: Path, shard: Shard, stamp: tuple[int, int]) -> ShardIndex:
    keys, members = walk_tar(file, shard)
    return ShardIndex(shard, keys, members, _digest(keys, members), stamp)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _digest(keys: NDArray, members: dict[str, NDArray[np.int64]]) -> str:
    state = hashlib.blake2b(digest_size=16)
    state.update(b"\n".join(keys.tolist()))
    for extension, places in members.items():
        state.update(extension.encode() + places.astype("<i8").tobytes())
    return state.hexdigest()


def with_crcs(index: ShardIndex) -> ShardIndex:
    """The index with a CRC-32 of every member, by which later damage of their bytes is noticed."""
    crcs = {}
    for extension, places in index.members.items():
        crcs[extension] = np.zeros(len(index), dtype=np.uint32)
        for row in np.flatnonzero(places[:, 0] >= 0).tolist():
            crcs[extension][row] = zlib.crc32(read_member(index, row, extension))
    return replace(index, crcs=crcs)


def write_sidecar(path: Path) -> int:
    """Indexes a shard anew, with CRCs, into the file beside it; returns its samples."""
    index = with_crcs(build_index(path))
    write_index(index, sidecar(path))
    return len(index)


def sidecar(path: Path) -> Path:
    """The index file beside a shard, as `mmrep data index` writes it."""
    return path.with_name(path.name + SIDECAR)


def cached_sidecar(path: Shard) -> Path:
    """The index file in the cache, where nothing lies beside the shard."""
    place = str(path.absolute()) if isinstance(path, Path) else path.address
    return cache_root() / "index" / f"{hashlib.blake2b(place.encode(), digest_size=16).hexdigest()}.npz"


def load_index(path: Shard) -> ShardIndex:
    """The index of a shard: from the file beside it, from the cache, or built now and cached.

    A file beside the shard that holds CRCs counts whatever the shard's time of change, which copying alters: every
    read is checked against it.

    Raises:
        DataError: see `build_index`; unreadable file; a shard that is not the one that the file beside it was made
            for.
    """
    try:
        index = _load_local(path) if isinstance(path, Path) else _load_remote(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    return index


def _load_local(path: Path) -> ShardIndex:
    stamp = _stamp(path)
    for place in (sidecar(path), cached_sidecar(path)):
        if not place.is_file():
            continue
        index = _read_index(path, place.read_bytes())
        if index is None:
            if place == sidecar(path):
                LOG.warning(
                    "%s is damaged or of another version, and not used; `mmrep data index` makes it anew", place
                )
            continue
        if index.stamp == stamp:
            return index
        if index.crcs:
            if index.stamp[0] != stamp[0]:
                raise DataError(
                    f"{path}: {stamp[0]} bytes, but its index {place.name} was made of {index.stamp[0]}: the shard is "
                    "truncated or replaced; if that is meant, run `mmrep data index` again"
                )
            return replace(index, stamp=stamp)
    index = build_index(path)
    _cache_index(index)
    return index


def _load_remote(path: RemoteShard) -> ShardIndex:
    from mmrep.data.remote import read_remote, remote_size

    size = path.size if path.size is not None else remote_size(path.address)
    place = cached_sidecar(path)
    index = _read_index(path, place.read_bytes()) if place.is_file() else None
    if index is not None and index.stamp[0] == size:
        return index
    beside = read_remote(path.address + SIDECAR, missing_ok=True)
    index = None if beside is None else _read_index(path, beside)
    if index is None or not index.crcs or index.stamp[0] != size:
        with path.open() as held:
            index = _index(held.path, path, (held.path.stat().st_size, 0))
    _cache_index(index)
    return index


def _cache_index(index: ShardIndex) -> None:
    try:
        write_index(index, cached_sidecar(index.path))
    except OSError as error:
        raise ConfigError(f"{cached_sidecar(index.path)}: {error.strerror}; MMREP_CACHE moves the cache") from error


def write_index(index: ShardIndex, place: Path) -> None:
    """Writes an index file."""
    arrays: dict[str, Any] = {f"member:{extension}": places for extension, places in index.members.items()}
    arrays |= {f"crc:{extension}": crcs for extension, crcs in index.crcs.items()}
    arrays["keys"] = index.keys
    arrays["stamp"] = np.array([INDEX_VERSION, *index.stamp])
    arrays["digest"] = np.array(index.digest)
    write_arrays(arrays, place)


def write_arrays(arrays: dict[str, Any], place: Path) -> None:
    """Writes an .npz file: into a temporary one, then renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files nobody else may read: shards and their indexes are shared.
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def read_arrays(data: bytes) -> dict[str, NDArray] | None:
    """The arrays of an .npz file; None where it is damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except _ARRAY_ERRORS:
        return None


def _read_index(path: Shard, data: bytes) -> ShardIndex | None:
    """The index in an index file; None where it is damaged or of another version."""
    arrays = read_arrays(data)
    try:
        if arrays is None or arrays["stamp"][0] != INDEX_VERSION:
            return None
        parts: dict[str, dict[str, NDArray]] = {"member": {}, "crc": {}}
        for name, array in arrays.items():
            kind, _, extension = name.partition(":")
            if extension:
                parts[kind][extension] = array
        size, changed = arrays["stamp"][1:].tolist()
        keys, members = arrays["keys"], parts["member"]
        index = ShardIndex(path, keys, members, str(arrays["digest"]), (size, changed), parts["crc"])
    except (KeyError, ValueError, IndexError, TypeError):
        return None
    whole = index.digest == _digest(keys, members) and (not index.crcs or index.crcs.keys() == members.keys())
    return index if whole else None


class _OpenFile:
    """A file descriptor that is closed with the last reference to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "descriptor"):
            close(self.descriptor)


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: Path, stamp: tuple[int, int]) -> _OpenFile:  # noqa: ARG001  # part of the cache's key
    """The file of a shard; `stamp` tells a shard from one that it has replaced."""
    return _OpenFile(path)


def _read(index: ShardIndex, size: int, offset: int) -> bytes:
    """Bytes of a shard. A copy in the cache is held for this long only: all it takes to open it are 25 µs, and copies
    kept open could not be evicted."""
    if isinstance(index.path, Path):
        return os.pread(_open(index.path, index.stamp).descriptor, size, offset)
    with index.path.open() as held:
        return os.pread(held.descriptor, size, offset)


def read_member(index: ShardIndex, sample: int, extension: str) -> bytes:
    """The bytes of one member.

    Raises:
        DataError: the sample has no such member, the shard ends before it, or its bytes have another CRC than the
            index.
    """
    offset, size = index.members[extension][sample].tolist() if extension in index.members else (-1, -1)
    if offset < 0:
        raise DataError(f"{index.sample(sample)} has no member {extension!r} (it has {_extensions(index, sample)})")
    try:
        data = _read(index, size, offset)
    except OSError as error:
        raise DataError(f"{index.sample(sample)}, member {extension!r}: {error.strerror}") from error
    if len(data) != size:
        raise DataError(
            f"{index.path}: truncated: sample {index.keys[sample].decode()!r}, member {extension!r}: "
            f"{len(data)} of {size} bytes"
        )
    if index.crcs and zlib.crc32(data) != index.crcs[extension][sample]:
        raise DataError(f"{index.sample(sample)}, member {extension!r}: damaged since it was indexed (CRC-32 differs)")
    return data


def _extensions(index: ShardIndex, sample: int) -> str:
    return ", ".join(name for name, places in index.members.items() if places[sample, 0] >= 0)


def image_extension(index: ShardIndex, sample: int) -> str:
    """The extension of a sample's image.

    Raises:
        DataError: the sample has no image.
    """
    for extension in IMAGE_EXTENSIONS:
        if extension in index.members and index.members[extension][sample, 0] >= 0:
            return extension
    raise DataError(
        f"{index.sample(sample)} has no image ({', '.join(IMAGE_EXTENSIONS)}); it has {_extensions(index, sample)}"
    )
