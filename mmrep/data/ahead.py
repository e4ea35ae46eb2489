"""Download the shards of the next steps while training works on the present ones."""

import logging
import threading
from collections import deque
from collections.abc import Sequence

from mmrep.config.checks import MmrepError
from mmrep.data.loader import Steps
from mmrep.data.remote import ShardCache
from mmrep.data.remote.download import shown
from mmrep.data.shards import RemoteShard

LOG = logging.getLogger("mmrep")
_THREADS = 8

Request = tuple[str, int | None, int]
"""Address, size in bytes and version of a shard; None and 0 where they are unknown."""


class Prefetcher:
    """Background downloads of shards, in the order of the requests.

    A failure is logged once for each address and not tried again here: `ShardCache.open` will try again, and raise.
    The requested shards should fit into the cache together, or the last ones evict the first.

    Args:
        cache: where the copies go.
        threads: number of downloads at a time.

    Attributes:
        errors: the error of each address that failed.
    """

    def __init__(self, cache: ShardCache, threads: int = 4) -> None:
        self.errors: dict[str, str] = {}
        self._cache = cache
        self._changed = threading.Condition()
        self._queue: deque[Request] = deque()
        self._running: set[str] = set()
        self._closed = False
        # Daemons, so that a stalled download does not keep the program from ending.
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def fetch(self, requests: Sequence[Request]) -> None:
        """Replace the shards to download next. Downloads under way go on."""
        with self._changed:
            self._queue = deque(requests)
            self._changed.notify_all()
            # Started late, since loader processes should be forked from a process without threads.
            while self._threads and not self._closed:
                self._threads.pop().start()

    def close(self) -> None:
        """Start no more downloads. Those under way end by themselves, or with the process."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def _next(self) -> Request | None:
        with self._changed:
            while not self._closed:
                while self._queue:
                    one = self._queue.popleft()
                    if one[0] not in self._running and one[0] not in self.errors:
                        self._running.add(one[0])
                        return one
                self._changed.wait()
        return None

    def _work(self) -> None:
        while (one := self._next()) is not None:
            try:
                self._cache.prefetch(*one)
            except Exception as error:
                self.errors[one[0]] = str(error)
                kind = "" if isinstance(error, MmrepError) else f"{shown(one[0])}: {type(error).__name__}: "
                LOG.warning("download ahead failed: %s%s", kind, error)
            finally:
                with self._changed:
                    self._running.discard(one[0])


class Ahead:
    """Background downloads of the shards of every source's present and next block.

    One process of each host needs it. Shards that do not fit into the cache together are not downloaded ahead.

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
        """Tell that training is at this step."""
        if self._prefetcher is None:
            return
        present, following = self._shards(step)
        if present + following != self._last:
            self._last = present + following
            self._prefetcher.fetch(self._requests(self._last))

    def close(self) -> None:
        """Download nothing more."""
        if self._prefetcher:
            self._prefetcher.close()

    def _shards(self, step: int) -> tuple[list[int], list[int]]:
        """Return the shards of every source's present block, and those of its next block, in the order of use."""
        order, starts = self._steps.order, self._steps.sources.shard_starts
        slot = step * self._steps.plan.global_batch
        present: list[int] = []
        following: list[int] = []
        for begin, now, both in zip(starts, order.shards_ahead(slot, 1), order.shards_ahead(slot, 2), strict=True):
            present += (begin + now).tolist()
            following += (begin + both[len(now) :]).tolist()
        return present, following

    def _requests(self, shards: list[int]) -> list[Request]:
        """Return the shards that are read through the cache, as far as they fit into it together."""
        sources = self._steps.sources
        room = sources.cache_bytes
        requests: list[Request] = []
        for shard in dict.fromkeys(shards):
            place = sources.shard(shard)
            if not isinstance(place, RemoteShard):
                continue
            room -= int(sources.catalog.sizes[shard])
            if room < 0:
                break
            requests.append((place.address, place.size, place.version))
        return requests

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
