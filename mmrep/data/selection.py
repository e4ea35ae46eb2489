"""Which rows of each shard a subset of a source keeps: found once, kept in the cache, mapped into memory."""

import hashlib
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.data.arrays import ARRAY_ERRORS
from mmrep.data.catalog import Progress
from mmrep.data.shards import ShardIndex
from mmrep.data.subsets import read_subset, select, shard_uids


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows that are left to train on.

    Attributes:
        counts: (shards,) how many of each shard.
        digest: of subset, shards and validation fraction.
        all_rows: (samples,) rows, shard after shard; a file mapped into memory.
    """

    counts: NDArray[np.int64]
    digest: str
    all_rows: NDArray[np.int32]

    def rows(self, shard: int) -> NDArray[np.int64]:
        """The rows of one shard, ascending."""
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
        """The rows whose uid is in a subset.

        Args:
            subset: an .npy file of uids, as DataComp publishes them.
            shards: (shards,) digests of the shards' indexes.
            fraction: of the validation split.
            candidates: a shard's index and its rows that are not held out.
            progress: called with (shards done, shards).

        Raises:
            ConfigError: not a list of uids, or none of them is in the shards.
            DataError: a sample without uid.
        """
        uids = read_subset(Path(subset))
        state = hashlib.blake2b(digest_size=16)
        state.update(np.ascontiguousarray(uids).view(np.uint8).data)
        state.update(shards.tobytes() + repr(fraction).encode())
        digest = state.hexdigest()
        folder = cache_root() / "selections"
        rows, ends = folder / f"{digest}.rows.npy", folder / f"{digest}.counts.npy"
        known = _known(rows, ends, len(shards))
        if known is None:
            found = []
            for shard in range(len(shards)):
                index, free = candidates(shard)
                rows_kept = np.intersect1d(select(shard_uids(index), uids), free, assume_unique=True)
                found.append(rows_kept.astype(np.int32))
                if progress:
                    progress(shard + 1, len(shards))
            _save(np.concatenate(found), rows)
            _save(np.array([len(kept) for kept in found], dtype=np.int64), ends)
            known = _known(rows, ends, len(shards))
            if known is None:
                raise ConfigError(f"{rows}: not what was written there just now; MMREP_CACHE moves the cache")
        counts, all_rows = known
        if not counts.sum():
            raise ConfigError(f"subset {subset}: none of its {len(uids)} uids is in the shards")
        return cls(counts, digest, all_rows)


def _known(rows: Path, ends: Path, shards: int) -> tuple[NDArray[np.int64], NDArray[np.int32]] | None:
    """The counts of shards and the rows that the cache holds; None where there are none, or damaged ones."""
    try:
        counts = np.load(ends, allow_pickle=False)
        found = np.load(rows, mmap_mode="r", allow_pickle=False) if counts.sum() else np.empty(0, np.int32)
        fits = counts.shape == (shards,) and counts.dtype == np.int64 and (counts >= 0).all()
        fits = fits and found.shape == (counts.sum(),) and found.dtype == np.int32
    except ARRAY_ERRORS:
        return None
    return (counts, found) if fits else None


def _save(array: NDArray, place: Path) -> None:
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.npy")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, array, allow_pickle=False)
        temporary.replace(place)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise ConfigError(f"{place}: {error.strerror}; MMREP_CACHE moves the cache") from error
