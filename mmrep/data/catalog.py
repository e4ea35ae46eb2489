"""Catalogs: one table of all shards of a set, so that a run can start without opening any of them."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.data.files import absolute, cache_errors, read_arrays, read_regular, regular_stat, write_arrays
from mmrep.data.img2dataset import stats_of
from mmrep.data.indexing import load_index
from mmrep.data.remote import is_remote, read_remote, remote_size
from mmrep.data.shards import RemoteShard, Shard, ShardIndex
from mmrep.data.tar import DataError

CATALOG_VERSION = 2
_THREADS = 8
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9)
_FNV_PRIME = np.uint64(0x100000001B3)

_TABLES: dict[str, tuple[str, type | None]] = {
    "addresses": ("S", None), "samples": ("i", np.int64), "sizes": ("i", np.int64), "digests": ("S", None),
    "identities": ("u", np.uint64), "listed": ("i", np.int64),
}  # fmt: skip
"""Kind of each table, and its dtype if there is only one."""
_MOST_BYTES, _MOST_NAME, _MOST_SAMPLES = 256 << 20, 4096, 1 << 40

Progress = Callable[[int, int], None]
"""Called with (shards done, shards)."""


@dataclass(frozen=True, eq=False)
class Catalog:
    """A table of shards.

    Attributes:
        addresses: (shards,) paths or addresses, UTF-8.
        samples: (shards,) number of samples.
        sizes: (shards,) bytes.
        digests: (shards,) hexadecimal digests of the shards' indexes.
        identities: (shards,) sums, modulo 2^64, of a hash of each sample's key and sizes.
        listed: (shards,) rows of the list that img2dataset downloaded them from; 0 without img2dataset's statistics.
    """

    addresses: NDArray
    samples: NDArray[np.int64]
    sizes: NDArray[np.int64]
    digests: NDArray
    identities: NDArray[np.uint64]
    listed: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.addresses)

    def address(self, shard: int) -> str:
        """Return the path or address of a shard."""
        return self.addresses[shard].decode()

    def name(self, shard: int) -> str:
        """Return the file name of a shard."""
        return self.address(shard).rpartition("/")[2]


def key_hashes(keys: NDArray, start: int) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each key: FNV-1a from `start`, then mixed.

    The hash is frozen, because the validation split depends on it.
    """
    state = np.full(len(keys), start, dtype=np.uint64)
    for column in keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize).T:
        # A key ends at its first zero byte, so that its hash does not depend on the longest key of the shard.
        state = np.where(column == 0, state, (state ^ column.astype(np.uint64)) * _FNV_PRIME)
    return _mixed(state)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(31))) * np.uint64(_MULTIPLIERS[0])
    return (state ^ (state >> np.uint64(29))) * np.uint64(_MULTIPLIERS[1])


def identity(index: ShardIndex) -> int:
    """Return the sum, modulo 2^64, of a hash of each sample's key and the sizes of its members.

    It does not depend on how samples are spread over shards. It differs between two downloads of one list if other
    images are missing or were replaced.
    """
    total = key_hashes(index.keys, 0)
    for extension, places in index.members.items():
        salt = int.from_bytes(hashlib.blake2b(extension.encode(), digest_size=8).digest(), "little")
        sizes = places[:, 1].astype(np.uint64) + np.uint64(1)
        # An extension that only other samples of the shard have must leave no trace.
        total = np.where(places[:, 0] < 0, total, _mixed(total ^ sizes * np.uint64(salt | 1)))
    return int(np.add.reduce(total, dtype=np.uint64))


def catalog_of(shards: Sequence[Shard], progress: Progress | None = None) -> Catalog:
    """Return the catalog of some shards: from the cache if none of them has changed, else from their indexes.

    Raises:
        DataError: see `load_index`; a shard has another number of samples than img2dataset downloaded into it.
    """
    addresses = np.array([str(shard).encode() for shard in shards])
    state = hashlib.blake2b(addresses.tobytes() + str(Path.cwd()).encode(), digest_size=16)
    place = cache_root() / "catalogs" / f"{state.hexdigest()}.npz"
    # Local shards are indexed by Python code, which threads do not speed up.
    threads = _THREADS if any(isinstance(shard, RemoteShard) for shard in shards) else 1
    with ThreadPoolExecutor(threads) as pool:
        stamps = np.array(list(pool.map(_stamp, shards)), dtype=np.int64)
        known = read_arrays(place.read_bytes()) if place.is_file() else None
        if known and not _fault(known) and np.array_equal(known.get("stamps", []), stamps):
            return _from_arrays(known)
        rows = []
        for row in pool.map(_row, shards, stamps[:, 0].tolist()):
            rows.append(row)
            if progress:
                progress(len(rows), len(shards))
    columns = zip(list(_TABLES.values())[1:], zip(*rows, strict=True), strict=True)
    catalog = Catalog(addresses, *(np.array(column, dtype=dtype) for (_, dtype), column in columns))
    with cache_errors(place):
        write_arrays(_to_arrays(catalog) | {"stamps": stamps}, place)
    return catalog


def _row(shard: Shard, size: int) -> tuple[int, int, bytes, int, int]:
    """Return samples, bytes, digest, identity and listed rows of a shard."""
    if isinstance(shard, RemoteShard) and size >= 0:
        shard = replace(shard, size=size)
    index = load_index(shard)
    stats = stats_of(shard, len(index)) if isinstance(shard, Path) else None
    listed = 0 if stats is None else stats.rows
    return len(index), index.stamp[0], index.digest.encode(), identity(index), listed


def _stamp(shard: Shard) -> tuple[int, int]:
    if isinstance(shard, RemoteShard):
        size = shard.size if shard.size is not None else remote_size(shard.address)
        return -1 if size is None else size, 0
    try:
        stat = regular_stat(shard)
    except OSError as error:
        raise DataError(f"{shard}: {error.strerror}") from error
    return stat.st_size, stat.st_mtime_ns


def write_catalog(catalog: Catalog, place: Path) -> None:
    """Write a catalog file. Shards in or below its folder are stored relative to it, so that a set can be moved."""
    folder = f"{absolute(str(place.parent))}/"
    addresses = [catalog.address(shard) for shard in range(len(catalog))]
    names = [name if is_remote(name) else absolute(name).removeprefix(folder) for name in addresses]
    write_arrays(_to_arrays(catalog) | {"addresses": np.array([name.encode() for name in names])}, place)


def read_catalog(place: str) -> Catalog:
    """Read a catalog file, local or remote.

    Raises:
        ConfigError: not a catalog, a damaged one, or one of another version.
    """
    if is_remote(place):
        data = read_remote(place)
    else:
        place = str(Path(place).expanduser())
        try:
            data = read_regular(Path(place), _MOST_BYTES)
        except OSError as error:
            raise ConfigError(f"{place}: {error.strerror or error}") from error
    arrays = read_arrays(data)
    fault = "not a catalog, or damaged" if arrays is None else _fault(arrays)
    if arrays is None or fault:
        raise ConfigError(f"{place}: {fault}; `mmrep data index SHARDS --catalog {place}` writes one")
    folder = place.rpartition("/")[0]
    if folder:
        prefix = f"{folder}/".encode()
        names = arrays["addresses"].tolist()
        whole = [name if name.startswith(b"/") or b"://" in name else prefix + name for name in names]
        arrays["addresses"] = np.array(whole)
    return _from_arrays(arrays)


def _fault(arrays: dict[str, NDArray]) -> str:
    """Return what is wrong with the tables of a catalog file; empty if nothing is."""
    version = arrays.get("version", np.empty(0))
    if version.ndim or version.dtype.kind not in "iu":
        return "not a catalog, or damaged: no version"
    if version != CATALOG_VERSION:
        return f"a catalog of version {version}, expected {CATALOG_VERSION}"
    count = arrays["addresses"].size if "addresses" in arrays else 0
    for name, (kind, dtype) in _TABLES.items():
        table = arrays.get(name)
        if table is None:
            return f"not a catalog, or damaged: no {name}"
        if table.shape != (count,) or not count:
            return f"{name}: {table.shape} values; a catalog without shards, or with tables of different lengths"
        if table.dtype.kind != kind or (dtype and table.dtype != dtype) or (kind == "i" and (table < 0).any()):
            return f"{name}: {table.dtype} values, which a catalog can't have"
    try:
        b"\n".join(arrays["addresses"].tolist()).decode("utf-8")
    except UnicodeDecodeError:
        return "addresses: not UTF-8"
    if not all(0 < len(address) < _MOST_NAME for address in arrays["addresses"].tolist()):
        return f"addresses: a shard without a name, or one of {_MOST_NAME:,} bytes and more"
    if (arrays["samples"] > _MOST_SAMPLES).any():
        return f"samples: a shard of more than {_MOST_SAMPLES:,}"
    return ""


def _to_arrays(catalog: Catalog) -> dict[str, NDArray]:
    return {name: getattr(catalog, name) for name in _TABLES} | {"version": np.array(CATALOG_VERSION)}


def _from_arrays(arrays: dict[str, NDArray]) -> Catalog:
    return Catalog(**{name: arrays[name] for name in _TABLES})


def joined(catalogs: Sequence[Catalog]) -> Catalog:
    """Concatenate catalogs."""
    return Catalog(**{name: np.concatenate([getattr(one, name) for one in catalogs]) for name in _TABLES})
