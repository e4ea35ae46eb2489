"""The training sources as sets of samples: shards catalogued, validation split cut off, digests taken."""

import hashlib
import logging
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError, require
from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.captions import Captioner
from mmrep.data.catalog import Catalog, Progress, catalog_of, joined, key_hashes, read_catalog
from mmrep.data.files import absolute
from mmrep.data.indexing import cached_sidecar, load_index
from mmrep.data.paths import expand_shards
from mmrep.data.remote import ShardCache, is_remote
from mmrep.data.shards import RemoteShard, Shard, ShardIndex
from mmrep.data.subsets import Selection
from mmrep.data.tar import DataError

LOG = logging.getLogger("mmrep")

_INDEX_BYTES = 96 << 20
"""Bytes of memory for the open indexes of each group of sources. Those of a block of a million samples take 69 MB."""
_VALIDATION_SHARDS = 64
_MOST_FAILURES = 1000


class Sample(NamedTuple):
    """The place of a sample: its shard, its row there, the captioner of its source, its number."""

    shard: ShardIndex
    row: int
    captioner: Captioner
    number: int


class _Opened(NamedTuple):
    """A shard's index, the rows to train on (None: all), and the rows held out."""

    shard: ShardIndex
    train: NDArray[np.int64] | None
    held: NDArray[np.int64]


class Sources:
    """All training sources.

    Only a table of shards is in memory; a shard's index is read when one of its samples is. Samples to train on are
    numbered consecutively over all sources, in the order of shards.

    The validation split follows a fixed rule. Of each shard, a share `fraction` of the samples is held out (rounded
    up or down by a hash of the shard's file name): those with the smallest hash of file name and key. The rule does not
    depend on other shards, and a larger fraction holds out the same samples and more.

    Args:
        config: sources, validation split, caches.
        progress: called with (shards indexed, shards) while indexing.

    Attributes:
        catalog: all shards.
        captioners: the captioner of each source.
        selections: for each source, the rows that its subset keeps; None without a subset.
        counts: (shards,) samples to train on.
        held: (shards,) samples held out.
        groups: for each part of the order (a weighted source, or all sources together), its shards' counts.
        starts: for each group, the number of its first sample.
        shard_starts: for each group, the position of its first shard in the catalog.
        weights: for each group, its weight.
        captions: all kinds of caption.

    Raises:
        ConfigError: missing shards, class names or templates; a split that leaves nothing.
        DataError: a damaged shard.
    """

    def __init__(self, config: DataConfig, progress: Progress | None = None) -> None:
        self.config = config
        self._cache: ShardCache | None = None
        catalogs = [self._catalog(source, i, progress) for i, source in enumerate(config.train)]
        self.catalog = joined(catalogs)
        self._bounds = np.cumsum([0, *map(len, catalogs)])
        self.captioners = [
            Captioner(source, catalog.address(0), f"data.train[{i}]")
            for i, (source, catalog) in enumerate(zip(config.train, catalogs, strict=True))
        ]
        self._check_classes()
        # Without weights all sources are one group, which has each of its samples once an epoch.
        weighted = config.train[0].weight is not None
        self.weights = [float(source.weight or 1) for source in config.train] if weighted else [1.0]
        ranges = list(pairwise(self._bounds.tolist()))
        groups = ranges if weighted else [(0, len(self.catalog))]
        self._check_twice(groups)
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._unusable: dict[int, DataError] = {}
        self.selections: list[Selection | None] = [None] * len(catalogs)
        self.held = self._held_counts()
        self.selections = [self._selection(source, i, progress) for i, source in enumerate(config.train)]
        self._opened.clear()  # the rows in there were those before the selection
        self.counts = self.catalog.samples - self.held
        for (begin, end), selection in zip(ranges, self.selections, strict=True):
            if selection:
                self.counts[begin:end] = selection.counts
        self._first = np.concatenate([[0], np.cumsum(self.counts)])
        self.groups = [self.counts[begin:end] for begin, end in groups]
        self.starts = [int(self._first[begin]) for begin, _ in groups]
        self.shard_starts = [begin for begin, _ in groups]
        require(
            all(group.sum() for group in self.groups),
            f"data.validation.fraction {config.validation.fraction}: a source has no samples left to train on",
        )
        self.captions = sorted({kind for captioner in self.captioners for kind in captioner.kinds})

    def __len__(self) -> int:
        """Return the number of samples to train on."""
        return int(self._first[-1])

    def sample(self, number: int) -> Sample:
        """Return the place of a sample to train on; raise DataError if its shard can't be read."""
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        opened, row = self._open(shard), int(number - self._first[shard])
        row = row if opened.train is None else int(opened.train[row])
        return Sample(opened.shard, row, self._captioner(shard), number)

    def held_out(self, most: int, skip_bad: bool = False) -> list[Sample]:
        """Return at most `most` held-out samples, spread evenly; from large sets those of a few shards.

        Their numbers are negative, because they are not samples to train on.

        Args:
            most: most samples.
            skip_bad: skip shards that can't be read, with a warning, instead of raising DataError.
        """
        holding = np.flatnonzero(self.held)
        enough = max(_VALIDATION_SHARDS, -(-most * len(holding) // max(int(self.held.sum()), 1)))
        if len(holding) > enough:
            holding = holding[np.linspace(0, len(holding) - 1, enough).astype(np.int64)]
        places = [(shard, rank) for shard in holding.tolist() for rank in range(self.held[shard])]
        if len(places) > most:
            places = [places[i] for i in np.linspace(0, len(places) - 1, most).astype(np.int64).tolist()]
        samples = []
        unreadable: set[int] = set()
        for i, (shard, rank) in enumerate(places):
            try:
                opened = self._open(shard)
            except DataError as error:
                if not skip_bad:
                    raise
                if shard not in unreadable:
                    LOG.warning("left out of the validation split: %s", error)
                unreadable.add(shard)
                continue
            samples.append(Sample(opened.shard, int(opened.held[rank]), self._captioner(shard), -1 - i))
        return samples

    def source_of(self, shard: int) -> int:
        """Return the number of the source that a shard belongs to."""
        return int(np.searchsorted(self._bounds, shard, side="right")) - 1

    def digest(self) -> str:
        """Return a digest of shard names, indexes, captions, weights and split. Equal batches need equal digests."""
        state = hashlib.blake2b(digest_size=16)
        for shard in range(len(self.catalog)):
            state.update(f"{self.catalog.name(shard)} {self.catalog.samples[shard]} ".encode())
            state.update(self.catalog.digests[shard] + b"\n")
        for captioner, bound in zip(self.captioners, self._bounds.tolist(), strict=False):
            state.update(f"{bound} {captioner.digest}\n".encode())
        state.update(repr(self.weights).encode() + self.counts.astype("<i8").tobytes())
        state.update("".join(selection.digest if selection else "-" for selection in self.selections).encode())
        return state.hexdigest()

    def identity(self) -> str:
        """Return a digest of the samples' keys and sizes. It does not depend on their order and shards."""
        return f"{int(np.add.reduce(self.catalog.identities, dtype=np.uint64)):016x}"

    def describe(self) -> dict[str, object]:
        """Return what a run's summary says of its data."""
        return {
            "shards": len(self.catalog),
            "samples": len(self),
            "held_out": int(self.held.sum()),
            "listed": int(self.catalog.listed.sum()),
            "identity": self.identity(),
        }

    def shard(self, number: int) -> Shard:
        """Return a shard of the catalog as it is read: directly, or through the cache."""
        address, size = self.catalog.address(number), int(self.catalog.sizes[number])
        if is_remote(address):
            return RemoteShard(address, self.cache, size)
        if not self.config.stage:
            return Path(address)
        path = Path(address).absolute()
        version = path.stat().st_mtime_ns if path.exists() else 0
        return RemoteShard(f"file://{path}", self.cache, size, version)

    @property
    def through_cache(self) -> bool:
        """Whether any source is read through the cache."""
        return self.config.stage or any(b"://" in address for address in self.catalog.addresses.tolist())

    @property
    def cache_bytes(self) -> int:
        """The size limit of the cache."""
        return int(self.config.cache_gb * 2**30)

    @property
    def cache(self) -> ShardCache:
        """The bounded cache of remote and staged shards."""
        if self._cache is None:
            place = Path(self.config.cache_dir).expanduser() if self.config.cache_dir else cache_root() / "shards"
            self._cache = ShardCache(place, self.cache_bytes)
        return self._cache

    def _catalog(self, source: SourceConfig, i: int, progress: Progress | None) -> Catalog:
        patterns = [source.shards] if isinstance(source.shards, str) else source.shards
        catalogs = [read_catalog(pattern) for pattern in patterns if pattern.endswith(".npz")]
        plain = [pattern for pattern in patterns if not pattern.endswith(".npz")]
        if plain:
            places = expand_shards(plain, f"data.train[{i}].shards")
            shards = [RemoteShard(place, self.cache) if isinstance(place, str) else place for place in places]
            catalogs.append(catalog_of(shards, progress))
        return joined(catalogs)

    def _check_twice(self, groups: list[tuple[int, int]]) -> None:
        """Raise ConfigError if a shard is listed twice in a group, which has each sample once an epoch."""
        for begin, end in groups:
            seen: set[str] = set()
            for shard in range(begin, end):
                address = self.catalog.address(shard)
                place = address if is_remote(address) else absolute(address)
                require(
                    place not in seen,
                    f"data.train: {address} is listed twice; give a source a weight to draw from it more often",
                )
                seen.add(place)

    def _check_classes(self) -> None:
        """Raise ConfigError if the folders of one source have different class names or templates."""
        for i, source in enumerate(self.config.train):
            captioner = self.captioners[i]
            if "cls" not in captioner.kinds or (source.classnames and source.templates):
                continue
            begin, end = self._bounds[i : i + 2].tolist()
            folders = {self.catalog.address(shard).rpartition("/")[0]: shard for shard in range(begin, end)}
            for shard in folders.values():
                other = Captioner(source, self.catalog.address(shard), f"data.train[{i}]")
                require(
                    other.digest == captioner.digest,
                    f"data.train[{i}]: {self.catalog.address(begin)} and {self.catalog.address(shard)} have different "
                    "class names or templates beside them; make them two sources",
                )

    def _selection(self, source: SourceConfig, i: int, progress: Progress | None) -> Selection | None:
        """Return the rows of each shard that a source's subset leaves to train on."""
        if source.subset is None:
            return None
        begin, end = self._bounds[i : i + 2].tolist()

        def candidates(shard: int) -> tuple[ShardIndex, NDArray[np.int64]]:
            opened = self._open(begin + shard)
            return opened.shard, np.arange(len(opened.shard)) if opened.train is None else opened.train

        return Selection.of(
            source.subset, self.catalog.digests[begin:end], self.config.validation.fraction, candidates, progress
        )

    def _held_counts(self) -> NDArray[np.int64]:
        """Return how many samples of each shard are held out."""
        fraction = self.config.validation.fraction
        if fraction == 0:
            return np.zeros(len(self.catalog), dtype=np.int64)
        chance = [_name_hash(self.catalog.name(shard)) / 2**64 for shard in range(len(self.catalog))]
        return np.floor(self.catalog.samples * fraction + chance).astype(np.int64)

    def _captioner(self, shard: int) -> Captioner:
        return self.captioners[self.source_of(shard)]

    def _open(self, shard: int) -> _Opened:
        """Return a shard's index and rows. Those used last stay in memory, up to `_INDEX_BYTES`."""
        if shard in self._opened:
            self._opened.move_to_end(shard)
            return self._opened[shard]
        if shard in self._unusable:
            raise self._unusable[shard]
        try:
            index = self._load(shard)
        except DataError as error:
            # Otherwise each of its samples would try again, and wait for every retry of a download.
            self._unusable[shard] = error
            raise
        self._opened[shard] = opened = self._cut(shard, index)
        limit = _INDEX_BYTES * len(self.weights)
        while len(self._opened) > 1 and sum(kept.shard.nbytes for kept in self._opened.values()) > limit:
            self._opened.popitem(last=False)
        return opened

    def _load(self, shard: int) -> ShardIndex:
        place = self.shard(shard)
        index = load_index(place)
        if isinstance(place, RemoteShard) and index.digest.encode() != self.catalog.digests[shard]:
            cached_sidecar(place).unlink(missing_ok=True)  # it belongs to an older file at the address
            index = load_index(place)
        if index.digest.encode() != self.catalog.digests[shard]:
            raise DataError(
                f"{index.path}: changed since it was catalogued ({self.catalog.samples[shard]} samples then, "
                f"{len(index)} now); if that is meant, make the catalog again with `mmrep data index`"
            )
        return index

    def _cut(self, shard: int, index: ShardIndex) -> _Opened:
        """Split the rows of a shard into those to train on and those held out."""
        train: NDArray[np.int64] | None = None
        held = np.zeros(0, dtype=np.int64)
        if self.held[shard]:
            order = np.argsort(key_hashes(index.keys, _name_hash(index.path.name)), kind="stable")
            held = np.sort(order[: self.held[shard]])
            train = np.sort(order[self.held[shard] :])
        source = self.source_of(shard)
        selection = self.selections[source]
        if selection:
            train = selection.rows(shard - int(self._bounds[source]))
        return _Opened(index, train, held)


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def check_sources(config: DataConfig) -> None:
    """Find missing shards, class names and templates before anything heavy is imported.

    Raises:
        ConfigError: it names the field and the path.
    """
    for i, source in enumerate(config.train):
        patterns = [source.shards] if isinstance(source.shards, str) else source.shards
        for number, pattern in enumerate(patterns):
            if is_remote(pattern):
                continue
            if pattern.endswith(".npz"):
                first = read_catalog(pattern).address(0)
            else:
                first = str(expand_shards(pattern, f"data.train[{i}].shards")[0])
            if number == 0 and not is_remote(first):
                Captioner(source, first, f"data.train[{i}]")
        if source.subset is not None:
            require(Path(source.subset).is_file(), f"data.train[{i}].subset: no such file: {source.subset}")


def check_contrast(sources: Sources) -> None:
    """Check that a training set has negatives: pairs of one class or caption are masked, and nothing is learned.

    It reads samples until two belong to different groups: two samples of most sets, all samples of a set that it
    refuses.

    Raises:
        ConfigError: all pairs that could be drawn belong to one group.
    """
    found: set[int] = set()
    example = ""
    for number in range(len(sources)):
        sample = sources.sample(number)
        try:
            found |= sample.captioner.groups_of(sample.shard, sample.row)
        except DataError:
            if not found and number == _MOST_FAILURES:
                return  # such as a wrong kind of caption, which the loader reports
            continue  # the loader reports it, or replaces the sample
        if len(found) > 1:
            return
        example = example or sample.captioner.draw(sample.shard, sample.row, np.zeros(2, np.uint64)).text
    if found:
        raise ConfigError(
            f"data.train: all {len(sources)} pairs are of one class or caption ({example[:80]!r}): no pair has a "
            "negative, and nothing would be learned; add other classes, or choose other captions (data.train caption)"
        )
