"""What a set is made of: images with labels or captions, wherever they lie."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from mmrep.data.captions import class_label, text_lines
from mmrep.data.decode import read_image
from mmrep.data.shards import ShardIndex


@runtime_checkable
class Records(Protocol):
    """The samples of a set. Worker processes get a copy, so everything here can be pickled.

    All readers raise DataError, naming the sample, where something can't be read.
    """

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def key(self, position: int) -> str:
        """A stable, unique name of a sample."""
        ...

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """Its pixels as they are stored."""
        ...

    def label(self, position: int) -> int:
        """Its class."""
        ...

    def labels(self, position: int) -> list[int]:
        """Its classes, where it may have several or none."""
        ...

    def texts(self, position: int) -> list[str]:
        """All its captions; at least one."""
        ...

    def take(self, positions: Sequence[int]) -> "Records":
        """Some of the samples, in the order given."""
        ...

    def digest(self) -> str:
        """Changes where any sample, as far as the index tells, does."""
        ...


@dataclass(frozen=True)
class ShardRecords:
    """Samples of WebDataset shards.

    Attributes:
        samples: shard and row of each.
        captions: `txt`, `json:KEY` or `cls`.
        classes: how many there are; 0 where samples have captions.
    """

    samples: list[tuple[ShardIndex, int]]
    captions: str
    classes: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, position: int) -> str:
        """Shard and key."""
        index, row = self.samples[position]
        return f"{index.path.name}/{index.keys[row].decode()}"

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """See `Records`."""
        return read_image(*self.samples[position])

    def label(self, position: int) -> int:
        """See `Records`."""
        return class_label(*self.samples[position], self.classes)

    def labels(self, position: int) -> list[int]:
        """See `Records`."""
        return [self.label(position)]

    def texts(self, position: int) -> list[str]:
        """See `Records`."""
        return text_lines(*self.samples[position], self.captions)

    def take(self, positions: Sequence[int]) -> "ShardRecords":
        """See `Records`."""
        return replace(self, samples=[self.samples[position] for position in positions])

    def digest(self) -> str:
        """Of the shards' indexes (keys, offsets, sizes; CRCs where there are any), the rows, and the kind of label."""
        state = hashlib.blake2b(f"{self.captions} {self.classes}".encode(), digest_size=16)
        seen: dict[int, bytes] = {}
        for index, row in self.samples:
            if id(index) not in seen:
                crcs = b"".join(values.tobytes() for values in index.crcs.values())
                stamp = b"" if index.crcs else repr(index.stamp).encode()
                seen[id(index)] = hashlib.blake2b(index.digest.encode() + crcs + stamp, digest_size=16).digest()
            state.update(seen[id(index)] + row.to_bytes(8, "little"))
        return state.hexdigest()
