"""WebDataset shards: where their samples lie, and their bytes, read by offset."""

import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmrep.data.tar import HEADER_BYTES, DataError, is_header_of

if TYPE_CHECKING:
    from mmrep.data.remote import HeldFile, ShardCache

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""In the order in which they are looked for: of several images of a sample the first is used."""
SEVERAL = "several images; the first of jpg, jpeg, png, webp is used (CLIP_benchmark: of webp, png, jpg, jpeg)"
_OPEN_FILES = 128


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
        version: changes where the file behind the address does, as far as that is known; 0: not known.
    """

    address: str
    cache: "ShardCache" = field(compare=False, repr=False)
    size: int | None = None
    checksum: str | None = None
    version: int = 0

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.address.rpartition("/")[2]

    def __str__(self) -> str:
        return self.address

    def open(self) -> "HeldFile":
        """A local copy, kept until it is closed."""
        with DOWNLOADS.running():
            return self.cache.open(self.address, self.size, self.checksum, self.version)


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
        DataError: the sample has no such member, the shard ends before it, or it is not the one that was indexed, by
            the CRC of the bytes or the tar header before them.
    """
    offset, size = index.members[extension][sample].tolist() if extension in index.members else (-1, -1)
    if offset < 0:
        raise DataError(f"{index.sample(sample)} has no member {extension!r} (it has {_extensions(index, sample)})")
    try:
        block = _read(index, HEADER_BYTES + size, offset - HEADER_BYTES)
    except OSError as error:
        raise DataError(f"{index.sample(sample)}, member {extension!r}: {error.strerror}") from error
    header, data = block[:HEADER_BYTES], block[HEADER_BYTES:]
    if len(data) != size:
        raise DataError(
            f"{index.path}: truncated: sample {index.keys[sample].decode()!r}, member {extension!r}: "
            f"{len(data)} of {size} bytes"
        )
    if index.crcs:
        if zlib.crc32(data) != index.crcs[extension][sample]:
            raise DataError(
                f"{index.sample(sample)}, member {extension!r}: damaged since it was indexed (CRC-32 differs)"
            )
    elif not is_header_of(header, index.keys[sample] + b"." + extension.encode(), size):
        raise DataError(
            f"{index.sample(sample)}, member {extension!r}: the shard was replaced or damaged since it was indexed: "
            "run `mmrep data index` again, or clear the folders index and shards of the cache (MMREP_CACHE)"
        )
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


def several_images(index: ShardIndex) -> list[str]:
    """Return the keys of the samples that have more than one image."""
    present = [index.members[name][:, 0] >= 0 for name in IMAGE_EXTENSIONS if name in index.members]
    several = np.sum(present, axis=0) > 1 if len(present) > 1 else np.zeros(len(index), dtype=bool)
    return [index.keys[row].decode() for row in np.flatnonzero(several)]
