"""DataComp's subsets: files of uids that select samples of a pool, without writing any shard anew."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.data.catalog import Progress
from mmrep.data.files import ARRAY_ERRORS, cache_errors, regular_stat
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.tar import DataError
from mmrep.files import replacing

UID = np.dtype("u8,u8")
"""A uid of 128 bits: its first and its last 16 hexadecimal digits."""
_HEX = re.compile(r"[0-9a-fA-F]{32}")
_CHUNK = 1 << 20


def parse_uid(text: str) -> tuple[int, int]:
    """Return the two halves of a uid of 32 hexadecimal digits; raise ValueError for another text."""
    if not _HEX.fullmatch(text):
        raise ValueError(f"expected a uid of 32 hexadecimal digits, got {text[:40]!r}")
    return int(text[:16], 16), int(text[16:], 16)


def read_subset(path: Path) -> NDArray:
    """Return the (uids,) of a subset in ascending order, with dtype `UID`.

    A file in ascending order is mapped into memory, another one is copied.

    Raises:
        ConfigError: the file is missing, not an .npy array of uids, or empty.
    """
    try:
        regular_stat(path)
        uids = np.load(path, allow_pickle=False, mmap_mode="r")
    except OSError as error:
        raise ConfigError(f"subset {path}: {error.strerror or error}") from error
    except ARRAY_ERRORS as error:
        raise ConfigError(f"subset {path}: not an .npy array of uids (dtype u8,u8)") from error
    if not isinstance(uids, np.ndarray) or uids.dtype != UID or uids.ndim != 1:
        got = f"{uids.dtype} {uids.shape}" if isinstance(uids, np.ndarray) else "an archive"
        raise ConfigError(f"subset {path}: expected uids (dtype u8,u8; one dimension), got {got}")
    if not len(uids):
        raise ConfigError(f"subset {path}: no uids in it")
    # numpy's sort compares structured values one by one; sorting two plain arrays takes a quarter of the time.
    return uids if _ascending(uids) else uids[np.lexsort((uids["f1"], uids["f0"]))]


def _ascending(uids: NDArray) -> bool:
    for start in range(0, len(uids), _CHUNK):
        high, low = (np.ascontiguousarray(uids[name][start : start + _CHUNK + 1]) for name in ("f0", "f1"))
        if not ((high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] <= low[1:]))).all():
            return False
    return True


def shard_uids(index: ShardIndex) -> NDArray:
    """Return the (samples,) uids of a shard with dtype `UID`, from the key `uid` of its json members.

    Raises:
        DataError: a sample has no json member or no uid.
    """
    uids = np.empty(len(index), dtype=UID)
    for row in range(len(index)):
        data = read_member(index, row, "json")
        try:
            uids[row] = parse_uid(str(json.loads(data)["uid"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = "no key 'uid'" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{index.sample(row)}, member 'json': {reason}; a subset needs the uids that img2dataset keeps"
                " with --save_additional_columns '[\"uid\"]'"
            ) from error
    return uids


def select(uids: NDArray, subset: NDArray) -> NDArray[np.int64]:
    """Return the rows whose uid is in a subset, in ascending order.

    Args:
        uids: (samples,) of dtype `UID`, in any order.
        subset: (uids,) of dtype `UID`, ascending, at least one.
    """
    places = np.searchsorted(subset, uids)
    places[places == len(subset)] = 0
    return np.flatnonzero(subset[places] == uids)


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows of each shard that a subset leaves to train on: found once, kept in the cache, mapped into memory.

    Attributes:
        counts: (shards,) number of rows of each shard.
        digest: digest of subset, shards and validation fraction.
        all_rows: (samples,) rows, shard after shard, mapped into memory.
    """

    counts: NDArray[np.int64]
    digest: str
    all_rows: NDArray[np.int32]

    def rows(self, shard: int) -> NDArray[np.int64]:
        """Return the rows of one shard in ascending order."""
        begin = int(self.counts[:shard].sum())
        return self.all_rows[begin : begin + int(self.counts[shard])].astype(np.int64)

    @classmethod
    def of(
        cls,
        subset: str,
        shards: NDArray,
        fraction: float,
        candidates: Callable[[int], tuple[ShardIndex, NDArray[np.int64]]],
        progress: Progress | None = None,
    ) -> "Selection":
        """Return the rows whose uid is in a subset.

        Args:
            subset: an .npy file of uids, as DataComp publishes them.
            shards: (shards,) digests of the shards' indexes.
            fraction: fraction of the validation split.
            candidates: returns a shard's index, and its rows that are not held out.
            progress: called with (shards done, shards).

        Raises:
            ConfigError: not a list of uids, or none of them is in the shards.
            DataError: a sample has no uid.
        """
        uids = read_subset(Path(subset))
        state = hashlib.blake2b(digest_size=16)
        state.update(np.ascontiguousarray(uids).view(np.uint8).data)
        state.update(shards.tobytes() + repr(fraction).encode())
        digest = state.hexdigest()
        place = cache_root() / "selections" / f"{digest}.npy"
        known = _known(place, len(shards))
        if known is None:
            found = []
            for shard in range(len(shards)):
                index, free = candidates(shard)
                rows_kept = np.intersect1d(select(shard_uids(index), uids), free, assume_unique=True)
                found.append(rows_kept.astype(np.int32))
                if progress:
                    progress(shard + 1, len(shards))
            with cache_errors(place), replacing(place) as part, part.open("wb") as file:
                np.save(file, np.concatenate([np.array([len(kept) for kept in found], np.int32), *found]))
            known = _known(place, len(shards))
            if known is None:
                raise ConfigError(f"{place}: not what was written there just now; MMREP_CACHE moves the cache")
        counts, all_rows = known
        if not counts.sum():
            raise ConfigError(f"subset {subset}: none of its {len(uids)} uids is in the shards")
        return cls(counts, digest, all_rows)


def _known(place: Path, shards: int) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """Return counts and rows from the cache, where the counts come first; None if they are missing or damaged."""
    try:
        table = np.load(place, mmap_mode="r", allow_pickle=False)
        counts, rows = table[:shards].astype(np.int64), table[shards:]
        fits = table.dtype == np.int32 and table.ndim == 1 and (counts >= 0).all() and len(rows) == counts.sum()
    except ARRAY_ERRORS:
        return None
    return (counts, rows) if fits and len(counts) == shards else None
