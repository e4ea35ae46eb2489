"""Downloads the shards of the next steps while training works on the present ones."""

import logging

import numpy as np
from numpy.typing import NDArray

from mmrep.data.loader import Steps
from mmrep.data.remote import Prefetcher, Wanted
from mmrep.data.shards import RemoteShard

LOG = logging.getLogger("mmrep")
_BLOCKS = 2
_THREADS = 8


class Ahead:
    """Keeps the shards of the present block of every source and of the next one on their way into the cache.

    One process of each host needs it. What does not fit into the cache together is not asked for ahead.

    Args:
        steps: the batches.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._last: list[list[int]] = []
        self._prefetcher = Prefetcher(steps.sources.cache, _THREADS) if steps.sources.through_cache else None
        if self._prefetcher:
            self._check_room()

    def advance(self, step: int) -> None:
        """Training is at this step."""
        if self._prefetcher is None:
            return
        shards = self._shards(step, _BLOCKS)
        if [group.tolist() for group in shards] != self._last:
            self._last = [group.tolist() for group in shards]
            self._prefetcher.want(self._wanted(shards))

    def close(self) -> None:
        """Asks for nothing more."""
        if self._prefetcher:
            self._prefetcher.close()

    def _shards(self, step: int, blocks: int) -> list[NDArray[np.int64]]:
        steps = self._steps
        return steps.order.shards_ahead(step * steps.plan.global_batch, blocks)

    def _wanted(self, shards: list[NDArray[np.int64]]) -> list[Wanted]:
        sources = self._steps.sources
        room = sources.cache_bytes
        wanted: dict[str, Wanted] = {}
        for begin, group in zip(sources.shard_starts, shards, strict=True):
            for shard in (begin + group).tolist():
                room -= int(sources.catalog.sizes[shard])
                if room < 0:
                    return list(wanted.values())
                place = sources.shard(shard)
                if isinstance(place, RemoteShard):
                    wanted[place.address] = (place.address, place.size, place.checksum)
        return list(wanted.values())

    def _check_room(self) -> None:
        sources = self._steps.sources
        block = sum(
            int(sources.catalog.sizes[begin + group].sum())
            for begin, group in zip(sources.shard_starts, self._shards(0, 1), strict=True)
        )
        if block > sources.cache_bytes:
            LOG.warning(
                "the shards that are shuffled together take %.1f GB, data.cache_gb is %.1f: each will be downloaded "
                "many times; raise it, or lower data.shuffle_block",
                block / 2**30,
                sources.cache_bytes / 2**30,
            )
