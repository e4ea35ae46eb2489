"""The training sources as sets of samples: shards indexed, validation split cut off, digests taken."""

import hashlib
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError, require
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data.captions import Captioner
from mmrep.data.paths import expand_shards
from mmrep.data.shards import ShardIndex, load_index

_FNV_PRIME = np.uint64(0x100000001B3)


class Sample(NamedTuple):
    """A sample's place."""

    shard: ShardIndex
    row: int
    captioner: Captioner
    number: int


def key_hashes(index: ShardIndex) -> NDArray[np.float64]:
    """A number in [0, 1) for each sample, of its shard's file name and key alone: the fixed rule of the validation
    split."""
    start = hashlib.blake2b(index.path.name.encode(), digest_size=8).digest()
    state = np.full(len(index), int.from_bytes(start, "little"), dtype=np.uint64)
    width = index.keys.dtype.itemsize
    for column in index.keys.view(np.uint8).reshape(len(index), width).T:
        # A key ends at its first zero byte, so that its hash does not depend on the longest key of the shard.
        state = np.where(column == 0, state, (state ^ column.astype(np.uint64)) * _FNV_PRIME)
    state = (state ^ (state >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Sources:
    """All training sources.

    Sample numbers run over the shards in the order given, over all sources; held-out samples keep theirs.

    Args:
        configs: the sources.
        validation: which samples are held out.
        progress: called with (shards indexed, shards) while indexing.

    Raises:
        ConfigError: missing shards, class names or templates; a split that leaves nothing.
        DataError: a damaged shard.
    """

    def __init__(
        self,
        configs: list[SourceConfig],
        validation: ValidationConfig,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        paths = [expand_shards(config.shards, f"data.train[{i}].shards") for i, config in enumerate(configs)]
        total, done = sum(map(len, paths)), 0
        self.indexes: list[ShardIndex] = []
        self.captioners: list[Captioner] = []
        bounds = [0]
        for i, (config, shards) in enumerate(zip(configs, paths, strict=True)):
            captioner = Captioner(config, shards[0], f"data.train[{i}]")
            for path in shards:
                self.indexes.append(load_index(path))
                self.captioners.append(captioner)
                done += 1
                if progress:
                    progress(done, total)
            bounds.append(len(self.indexes))
        self._first = np.concatenate([[0], np.cumsum([len(index) for index in self.indexes])])
        weighted = configs[0].weight is not None
        held = np.concatenate([key_hashes(index) for index in self.indexes]) < validation.fraction
        # Without weights all sources are one: each of its samples once an epoch.
        groups = list(pairwise(bounds)) if weighted else [(0, len(self.indexes))]
        self.weights = [float(config.weight or 1) for config in configs] if weighted else [1.0]
        self.train: list[NDArray[np.int64]] = []
        for begin, end in groups:
            numbers = np.arange(self._first[begin], self._first[end])
            self.train.append(numbers[~held[numbers]])
        self.held_out = np.flatnonzero(held)
        require(
            all(len(numbers) for numbers in self.train),
            f"data.validation.fraction {validation.fraction}: a source has no samples left to train on",
        )
        self.captions = sorted({config.caption for config in configs})

    def __len__(self) -> int:
        """Samples to train on."""
        return sum(len(numbers) for numbers in self.train)

    def sample(self, number: int) -> Sample:
        """The place of a sample."""
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return Sample(self.indexes[shard], int(number - self._first[shard]), self.captioners[shard], number)

    def digest(self) -> str:
        """Of shard names, contents' layout and captions, weights and split: where it differs, so do the batches."""
        state = hashlib.blake2b(digest_size=16)
        for index, captioner in zip(self.indexes, self.captioners, strict=True):
            state.update(f"{index.path.name} {len(index)} {index.digest} {captioner.digest}\n".encode())
        state.update(repr(self.weights).encode() + self.held_out.astype("<i8").tobytes())
        return state.hexdigest()


def check_sources(config: DataConfig) -> None:
    """Finds missing shards, class names and templates before anything heavy is imported.

    Raises:
        ConfigError: naming the field and the path.
    """
    for i, source in enumerate(config.train):
        shards = expand_shards(source.shards, f"data.train[{i}].shards")
        if not shards:
            raise ConfigError(f"data.train[{i}].shards: nothing matches {source.shards!r}")
        Captioner(source, shards[0], f"data.train[{i}]")
