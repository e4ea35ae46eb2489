"""Indexes of shards: built from the tar, kept in files beside it or in the cache."""

import hashlib
import io
import logging
import uuid
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.data.regular import regular_stat
from mmrep.data.shards import RemoteShard, Shard, ShardIndex, read_member
from mmrep.data.tar import DataError, walk_tar

LOG = logging.getLogger("mmrep")
INDEX_VERSION = 1
SIDECAR = ".index.npz"
_ARRAY_ERRORS = (
    OSError, ValueError, TypeError, EOFError, KeyError, AttributeError, NotImplementedError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip


def build_index(path: Path) -> ShardIndex:
    """Walks a local tar file once; see `walk_tar` for what it refuses."""
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
    try:
        write_index(index, sidecar(path))
    except OSError as error:
        raise ConfigError(f"{sidecar(path)}: can't be written: {error.strerror}") from error
    return len(index)


def sidecar(path: Path) -> Path:
    """The index file beside a shard, as `mmrep data index` writes it."""
    return path.with_name(path.name + SIDECAR)


def cached_sidecar(path: Shard) -> Path:
    """The index file in the cache, where nothing lies beside the shard."""
    place = str(path.absolute()) if isinstance(path, Path) else f"{path.address}{path.version or ''}"
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
