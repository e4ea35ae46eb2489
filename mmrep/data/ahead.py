"""Downloads the shards of the next steps while training works on the present ones."""

import logging

from mmrep.data.loader import Steps
from mmrep.data.remote import Prefetcher, Wanted
from mmrep.data.shards import RemoteShard

LOG = logging.getLogger("mmrep")
_THREADS = 8


class Ahead:
    """Keeps the shards of the present block of every source and of the next one on their way into the cache.

    One process of each host needs it. What does not fit into the cache together is not asked for ahead.

    Args:
        steps: the batches.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._last: list[int] = []
        self._prefetcher = Prefetcher(steps.sources.cache, _THREADS) if steps.sources.through_cache else None
        if self._prefetcher:
            self._check_room()

    def advance(self, step: int) -> None:
        """Training is at this step."""
        if self._prefetcher is None:
            return
        present, following = self._shards(step)
        if present + following != self._last:
            self._last = present + following
            self._prefetcher.want(self._wanted(self._last))

    def close(self) -> None:
        """Asks for nothing more."""
        if self._prefetcher:
            self._prefetcher.close()

    def _shards(self, step: int) -> tuple[list[int], list[int]]:
        """The shards of the block that every source is in, and those of the blocks that follow: in the order of use."""
        order, starts = self._steps.order, self._steps.sources.shard_starts
        slot = step * self._steps.plan.global_batch
        present: list[int] = []
        following: list[int] = []
        for begin, now, both in zip(starts, order.shards_ahead(slot, 1), order.shards_ahead(slot, 2), strict=True):
            present += (begin + now).tolist()
            following += (begin + both[len(now) :]).tolist()
        return present, following

    def _wanted(self, shards: list[int]) -> list[Wanted]:
        """Those of the shards that are read through the cache, as far as they fit into it together."""
        sources = self._steps.sources
        room = sources.cache_bytes
        wanted: list[Wanted] = []
        for shard in dict.fromkeys(shards):
            place = sources.shard(shard)
            if not isinstance(place, RemoteShard):
                continue
            room -= int(sources.catalog.sizes[shard])
            if room < 0:
                break
            wanted.append((place.address, place.size, place.checksum, place.version))
        return wanted

    def _check_room(self) -> None:
        sources = self._steps.sources
        shards = [shard for shard in self._shards(0)[0] if isinstance(sources.shard(shard), RemoteShard)]
        block = int(sources.catalog.sizes[shards].sum())
        if block > sources.cache_bytes:
            LOG.warning(
                "the shards that are shuffled together take %.3g GB, data.cache_gb is %.3g: each will be downloaded "
                "many times; raise it, or lower data.shuffle_block",
                block / 2**30,
                sources.cache_bytes / 2**30,
            )
