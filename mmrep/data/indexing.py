"""Indexes of shards: built from the tar, kept in files beside it or in the cache."""

import hashlib
import logging
import zlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.data.files import cache_errors, read_arrays, read_regular, regular_stat, write_arrays
from mmrep.data.remote import read_remote, remote_size
from mmrep.data.shards import RemoteShard, Shard, ShardIndex, read_member
from mmrep.data.tar import HEADER_BYTES, DataError, walk_tar

LOG = logging.getLogger("mmrep")
INDEX_VERSION = 1
SIDECAR = ".index.npz"
_MOST_BYTES, _SPARE_BYTES = 256 << 20, 1 << 20
"""Most bytes of an index file if the shard's size is unknown; how much larger than its shard it may be."""


def build_index(path: Path) -> ShardIndex:
    """Index a local tar file by reading all its headers; see `walk_tar` for the errors."""
    return _index(path, path, _stamp(path))


def _index(file: Path, shard: Shard, stamp: tuple[int, int]) -> ShardIndex:
    keys, members = walk_tar(file, shard)
    return ShardIndex(shard, keys, members, _digest(keys, members), stamp)


def _stamp(path: Path) -> tuple[int, int]:
    stat = regular_stat(path)
    return stat.st_size, stat.st_mtime_ns


def _digest(keys: NDArray, members: dict[str, NDArray[np.int64]]) -> str:
    state = hashlib.blake2b(digest_size=16)
    state.update(b"\n".join(keys.tolist()))
    for extension, places in members.items():
        state.update(extension.encode() + places.astype("<i8").tobytes())
    return state.hexdigest()


def with_crcs(index: ShardIndex) -> ShardIndex:
    """Return the index with a CRC-32 of every member, so that later damage of the bytes is noticed."""
    crcs = {}
    for extension, places in index.members.items():
        crcs[extension] = np.zeros(len(index), dtype=np.uint32)
        for row in np.flatnonzero(places[:, 0] >= 0).tolist():
            crcs[extension][row] = zlib.crc32(read_member(index, row, extension))
    return replace(index, crcs=crcs)


def write_sidecar(path: Path) -> int:
    """Index a shard anew, with CRCs, into the file beside it; return the number of samples."""
    index = with_crcs(build_index(path))
    try:
        write_index(index, sidecar(path))
    except OSError as error:
        raise ConfigError(f"{sidecar(path)}: can't be written: {error.strerror}") from error
    return len(index)


def sidecar(path: Path) -> Path:
    """Return the path of the index file beside a shard, which `mmrep data index` writes."""
    return path.with_name(path.name + SIDECAR)


def cached_sidecar(path: Shard) -> Path:
    """Return the path of a shard's index file in the cache."""
    place = str(path.absolute()) if isinstance(path, Path) else f"{path.address}{path.version or ''}"
    return cache_root() / "index" / f"{hashlib.blake2b(place.encode(), digest_size=16).hexdigest()}.npz"


def load_index(path: Shard) -> ShardIndex:
    """Return the index of a shard: from the file beside it, from the cache, or built now and cached.

    A file beside the shard that holds CRCs is used whatever the shard's time of change, which copying alters: every
    read is checked against the CRCs.

    Raises:
        DataError: see `build_index`; the file can't be read; or the file beside the shard was made for another one.
    """
    try:
        return _load_local(path) if isinstance(path, Path) else _load_remote(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _load_local(path: Path) -> ShardIndex:
    stamp = _stamp(path)
    for place in (sidecar(path), cached_sidecar(path)):
        if not place.is_file():
            continue
        try:
            index = _from_file(path, place, stamp[0])
        except ValueError as error:
            if place == sidecar(path):
                LOG.warning("%s is not used: %s; `mmrep data index` makes it anew", place, error)
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
    with cache_errors(cached_sidecar(path)):
        write_index(index, cached_sidecar(path))
    return index


def _load_remote(path: RemoteShard) -> ShardIndex:
    size = path.size if path.size is not None else remote_size(path.address)
    place = cached_sidecar(path)
    if place.is_file():
        with suppress(ValueError):
            known = _from_file(path, place, size)
            if known.stamp[0] == size:
                return known
    index: ShardIndex | None = None
    beside = read_remote(path.address + SIDECAR, missing_ok=True)
    if beside is not None:
        try:
            index = _from_bytes(path, beside)
        except ValueError as error:
            LOG.warning("%s is not used: %s", path.address + SIDECAR, error)
    if index is None or not index.crcs or index.stamp[0] != size:
        with path.open() as held:
            index = _index(held.path, path, (held.path.stat().st_size, 0))
    with cache_errors(place):
        write_index(index, place)
    return index


def write_index(index: ShardIndex, place: Path) -> None:
    """Write an index file; raise OSError if that fails."""
    arrays: dict[str, Any] = {f"member:{extension}": places for extension, places in index.members.items()}
    arrays |= {f"crc:{extension}": crcs for extension, crcs in index.crcs.items()}
    arrays["keys"] = index.keys
    arrays["stamp"] = np.array([INDEX_VERSION, *index.stamp])
    arrays["digest"] = np.array(index.digest)
    write_arrays(arrays, place)


def _from_file(path: Shard, place: Path, size: int | None) -> ShardIndex:
    """Read an index file; raise ValueError if it is unreadable, damaged, or larger than its shard of `size` bytes."""
    try:
        return _from_bytes(path, read_regular(place, (_MOST_BYTES if size is None else size) + _SPARE_BYTES))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def _from_bytes(path: Shard, data: bytes) -> ShardIndex:
    """Read an index file; raise ValueError with the reason if it is damaged or has another version."""
    arrays = read_arrays(data)
    if arrays is None:
        raise ValueError("damaged, or not an .npz file as `mmrep data index` writes it")
    stamp, keys, digest = (arrays.pop(name, np.empty(0)) for name in ("stamp", "keys", "digest"))
    _expect(stamp.dtype == np.int64 and stamp.shape == (3,), "stamp")
    if stamp[0] != INDEX_VERSION:
        raise ValueError(f"of version {stamp[0]}, expected {INDEX_VERSION}")
    _expect(keys.dtype.kind == "S" and keys.ndim == 1 and len(keys) > 0 and _are_text(keys), "keys")
    parts: dict[str, dict[str, NDArray]] = {"member": {}, "crc": {}}
    for name, array in arrays.items():
        kind, _, extension = name.partition(":")
        _expect(kind in parts and bool(extension), name)
        if kind == "member":
            _expect(_are_places(array, len(keys), int(stamp[1])), name)
        else:
            _expect(array.dtype == np.uint32 and array.shape == keys.shape, name)
        parts[kind][extension] = array
    members, crcs = parts["member"], parts["crc"]
    _expect(bool(members) and (not crcs or crcs.keys() == members.keys()), "members or crcs")
    _expect(digest.dtype.kind == "U" and not digest.ndim and str(digest) == _digest(keys, members), "digest")
    return ShardIndex(path, keys, members, str(digest), (int(stamp[1]), int(stamp[2])), crcs)


def _expect(condition: bool, field: str) -> None:
    if not condition:
        raise ValueError(f"damaged: unexpected content under {field[:80]!r}")


def _are_places(places: NDArray, samples: int, size: int) -> bool:
    """Return whether an array holds offsets and sizes of members within a shard of `size` bytes, -1 for none."""
    if places.dtype != np.int64 or places.shape != (samples, 2):
        return False
    offsets, sizes = places.T
    absent = (offsets == -1) & (sizes == -1)
    # Compared without a sum, which could overflow.
    within = (offsets >= HEADER_BYTES) & (sizes >= 0) & (offsets <= size) & (sizes <= size - offsets)
    return bool((absent | within).all())


def _are_text(keys: NDArray) -> bool:
    try:
        b"\n".join(keys.tolist()).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
