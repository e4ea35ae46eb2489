"""WebDataset shards: the places of their samples, and their bytes, read by offset."""

import os
import time
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrep.data.remote import HeldFile, ShardCache
from mmrep.data.tar import HEADER_BYTES, DataError, is_header_of

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""In the order of preference: if a sample has several images, the first is used."""
SEVERAL = "several images; the first of jpg, jpeg, png, webp is used (CLIP_benchmark: of webp, png, jpg, jpeg)"
_OPEN_FILES = 128


class Downloads:
    """The time that this process has spent waiting for remote shards."""

    seconds = 0.0


@dataclass(frozen=True)
class RemoteShard:
    """A shard at an fsspec address, read through a bounded local cache.

    Attributes:
        address: protocol and path.
        cache: the cache of local copies.
        size: bytes; None if unknown.
        version: a number that changes with the file at the address; 0 if unknown.
    """

    address: str
    cache: ShardCache = field(compare=False, repr=False)
    size: int | None = None
    version: int = 0

    @property
    def name(self) -> str:
        """The file name."""
        return self.address.rpartition("/")[2]

    def __str__(self) -> str:
        return self.address

    def open(self) -> HeldFile:
        """Return a local copy, which stays until it is closed."""
        begin = time.perf_counter()
        try:
            return self.cache.open(self.address, self.size, self.version)
        finally:
            Downloads.seconds += time.perf_counter() - begin


Shard = Path | RemoteShard


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The places of all members of a shard.

    Attributes:
        path: the tar file, or its address.
        keys: (samples,) keys, UTF-8.
        members: for each extension, (samples, 2) offsets and sizes in bytes; -1 where a sample has no such member.
        digest: digest of keys, extensions, offsets and sizes; it does not depend on path and time.
        stamp: size in bytes and time of change (ns; 0 for remote shards) of the file when it was indexed.
        crcs: for each extension, (samples,) CRC-32 of the bytes; empty unless `mmrep data index` has made the index.
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
        """Bytes of memory of the arrays."""
        arrays = [self.keys, *self.members.values(), *self.crcs.values()]
        return sum(array.nbytes for array in arrays)

    def sample(self, row: int) -> str:
        """Return the name of a sample in messages."""
        return f"{self.path}: sample {self.keys[row].decode()!r}"

    def extensions(self, row: int) -> list[str]:
        """Return the extensions that a sample has."""
        return [name for name, places in self.members.items() if places[row, 0] >= 0]


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: Path, stamp: tuple[int, int]) -> HeldFile:  # noqa: ARG001  # part of the cache's key
    """Return the open file of a shard. `stamp` tells a shard from one that has replaced it."""
    return HeldFile(path, os.open(path, os.O_RDONLY))


def _read(index: ShardIndex, size: int, offset: int) -> bytes:
    if isinstance(index.path, Path):
        return os.pread(_open(index.path, index.stamp).descriptor, size, offset)
    # A copy in the cache is held only for the read: opening it takes 25 µs, and an open copy can't be evicted.
    with index.path.open() as held:
        return os.pread(held.descriptor, size, offset)


def read_member(index: ShardIndex, sample: int, extension: str) -> bytes:
    """Return the bytes of one member.

    Raises:
        DataError: the sample has no such member, the shard ends before it, or it is not the member that was indexed,
            according to the CRC of its bytes or to the tar header before them.
    """
    offset, size = index.members[extension][sample].tolist() if extension in index.members else (-1, -1)
    if offset < 0:
        raise DataError(
            f"{index.sample(sample)} has no member {extension!r} (it has {', '.join(index.extensions(sample))})"
        )
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


def image_extension(index: ShardIndex, sample: int) -> str:
    """Return the extension of a sample's image; raise DataError if it has none."""
    for extension in IMAGE_EXTENSIONS:
        if extension in index.members and index.members[extension][sample, 0] >= 0:
            return extension
    raise DataError(
        f"{index.sample(sample)} has no image ({', '.join(IMAGE_EXTENSIONS)}); it has "
        f"{', '.join(index.extensions(sample))}"
    )


def several_images(index: ShardIndex) -> list[str]:
    """Return the keys of the samples that have more than one image."""
    present = [index.members[name][:, 0] >= 0 for name in IMAGE_EXTENSIONS if name in index.members]
    several = np.sum(present, axis=0) > 1 if len(present) > 1 else np.zeros(len(index), dtype=bool)
    return [index.keys[row].decode() for row in np.flatnonzero(several)]
