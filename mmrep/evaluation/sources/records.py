"""What a set is made of: images with labels or captions, in shards or in files of their own."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from mmrep.data.captions import class_label, text_lines
from mmrep.data.decode import decode_image, read_image
from mmrep.data.layouts.contents import Item
from mmrep.data.shards import ShardIndex, read_member
from mmrep.data.tar import DataError


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
        captions: `txt`, `json:KEY`, `cls`, or `npy` for several classes an image.
        classes: how many there are; 0 where samples have captions.
        most: captions that count, the first ones; None: all.
        folders: how many folders of a shard's place stand in keys, where file names alone don't tell shards apart.
    """

    samples: list[tuple[ShardIndex, int]]
    captions: str
    classes: int = 0
    most: int | None = None
    folders: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, position: int) -> str:
        """Shard and key."""
        index, row = self.samples[position]
        place = str(index.path).split("/")[-1 - self.folders :]
        return "/".join([*place, index.keys[row].decode()])

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """See `Records`."""
        return read_image(*self.samples[position])

    def label(self, position: int) -> int:
        """See `Records`."""
        return class_label(*self.samples[position], self.classes)

    def labels(self, position: int) -> list[int]:
        """See `Records`."""
        if self.captions == "npy":
            return _several(*self.samples[position], self.classes)
        return [self.label(position)]

    def texts(self, position: int) -> list[str]:
        """See `Records`."""
        return text_lines(*self.samples[position], self.captions)[: self.most]

    def take(self, positions: Sequence[int]) -> "ShardRecords":
        """See `Records`."""
        return replace(self, samples=[self.samples[position] for position in positions])

    def digest(self) -> str:
        """Of the shards' indexes (keys, offsets, sizes; CRCs where there are any), the rows, and the kind of label."""
        kind = f"{self.captions} {self.classes} {self.most}"
        state = hashlib.blake2b(kind.encode(), digest_size=16)
        seen: dict[int, bytes] = {}
        for index, row in self.samples:
            if id(index) not in seen:
                crcs = b"".join(values.tobytes() for values in index.crcs.values())
                stamp = b"" if index.crcs else repr(index.stamp).encode()
                seen[id(index)] = hashlib.blake2b(index.digest.encode() + crcs + stamp, digest_size=16).digest()
            state.update(seen[id(index)] + row.to_bytes(8, "little"))
        return state.hexdigest()


def _several(index: ShardIndex, row: int, classes: int) -> list[int]:
    """The classes of a multi-hot `npy` member.

    Raises:
        DataError: no array of numbers, of another length, with anything but 0 and 1 in it.
    """
    data = read_member(index, row, "npy")
    where = f"{index.sample(row)}, member 'npy'"
    try:
        hot = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, MemoryError) as error:
        raise DataError(f"{where}: not an array of numbers: {' '.join(str(error).split())[:100]}") from error
    if hot.shape != (classes,):
        raise DataError(f"{where}: shape {hot.shape}, but there are {classes} class names")
    if hot.dtype.kind not in "biuf" or not np.isin(hot, (0, 1)).all():
        raise DataError(f"{where}: expected nothing but 0 and 1, one for each class")
    return np.flatnonzero(hot).tolist()


@dataclass(frozen=True)
class FileRecords:
    """Samples whose images are files of their own.

    Attributes:
        folder: that the names start in.
        items: name and label or captions of each.
        most: captions that count, the first ones; None: all.
    """

    folder: Path
    items: list[Item]
    most: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def key(self, position: int) -> str:
        """The file's place in the folder."""
        return self.items[position].name

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """See `Records`."""
        path = self.folder / self.items[position].name
        try:
            return decode_image(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"{path}: {error}") from error

    def label(self, position: int) -> int:
        """See `Records`."""
        item = self.items[position]
        if item.label is None:
            raise DataError(f"{self.folder / item.name}: has captions, but no class")
        return item.label

    def labels(self, position: int) -> list[int]:
        """See `Records`."""
        return [self.label(position)]

    def texts(self, position: int) -> list[str]:
        """See `Records`."""
        item = self.items[position]
        if not item.captions:
            raise DataError(f"{self.folder / item.name}: no caption")
        return list(item.captions[: self.most])

    def take(self, positions: Sequence[int]) -> "FileRecords":
        """See `Records`."""
        return replace(self, items=[self.items[position] for position in positions])

    def digest(self) -> str:
        """Of every file's name, size and time of change, its label and captions.

        Raises:
            DataError: a file is gone.
        """
        state = hashlib.blake2b(f"files {self.most}".encode(), digest_size=16)
        for item in self.items:
            path = self.folder / item.name
            try:
                stat = path.stat()
            except OSError as error:
                raise DataError(f"{path}: {error.strerror}") from error
            state.update(repr((item.name, stat.st_size, stat.st_mtime_ns, item.label, item.captions)).encode())
        return state.hexdigest()


class Found(NamedTuple):
    """What a set holds.

    Attributes:
        records: its samples.
        classnames: in the order of labels; none for captions.
        templates: with `{c}` for the class name.
        multilabel: whether an image may have several classes.
    """

    records: Records
    classnames: list[str]
    templates: list[str]
    multilabel: bool = False
