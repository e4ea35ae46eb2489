"""What a set is made of: images with labels or captions, in shards or in files of their own."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from mmrep.data.captions import class_label, text_lines
from mmrep.data.decode import decode_image, read_image
from mmrep.data.files import ARRAY_ERRORS, read_array
from mmrep.data.layouts.contents import Item
from mmrep.data.shards import RemoteShard, ShardIndex, read_member
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
        """Of names, sizes, labels and captions: equal for copies of a set, wherever they lie."""
        ...

    def identity(self) -> str:
        """Of these very files: place and times too. Other pixels, even of the same names and sizes, have another."""
        ...


def file_size(path: Path) -> int:
    """In bytes.

    Raises:
        DataError: it is gone.
    """
    return _stat(path).st_size


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def files_identity(digest: str, files: Iterable[Path]) -> str:
    """Of a content's digest and the files that hold it, as they are now.

    The time of a file's last change (ctime) can't be set back, as that of its content (mtime) can.

    Raises:
        DataError: one is gone.
    """
    state = hashlib.blake2b(digest.encode(), digest_size=16)
    folders: dict[Path, Path] = {}  # resolved once each: files are many
    for path in files:
        if path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
        stat = _stat(path)
        about = (str(folders[path.parent] / path.name), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        state.update(repr(about).encode())
    return state.hexdigest()


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
        """Of the shards' sizes and indexes (keys, offsets; CRCs where there are any), rows, and the kind of label."""
        kind = f"{self.captions} {self.classes} {self.most}"
        state = hashlib.blake2b(kind.encode(), digest_size=16)
        seen: dict[int, bytes] = {}
        for index, row in self.samples:
            if id(index) not in seen:
                crcs = b"".join(values.tobytes() for values in index.crcs.values())
                content = index.digest.encode() + crcs + str(index.stamp[0]).encode()
                seen[id(index)] = hashlib.blake2b(content, digest_size=16).digest()
            state.update(seen[id(index)] + row.to_bytes(8, "little"))
        return state.hexdigest()

    def identity(self) -> str:
        """See `Records`; shards that have CRCs need no more than these."""
        shards = list({id(index): index.path for index, _ in self.samples if not index.crcs}.values())
        remote = [(each.address, each.version, each.size) for each in shards if isinstance(each, RemoteShard)]
        return files_identity(f"{self.digest()} {remote}", [each for each in shards if isinstance(each, Path)])


def _several(index: ShardIndex, row: int, classes: int) -> list[int]:
    """The classes of a multi-hot `npy` member.

    Raises:
        DataError: no array of numbers, of another length, with anything but 0 and 1 in it.
    """
    data = read_member(index, row, "npy")
    where = f"{index.sample(row)}, member 'npy'"
    try:
        hot = read_array(data)
    except ARRAY_ERRORS as error:
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
        """Of every file's name and size, its label and captions.

        Raises:
            DataError: a file is gone.
        """
        state = hashlib.blake2b(f"files {self.most}".encode(), digest_size=16)
        for item in self.items:
            path = self.folder / item.name
            state.update(repr((item.name, file_size(path), item.label, item.captions)).encode())
        return state.hexdigest()

    def identity(self) -> str:
        """See `Records`."""
        return files_identity(self.digest(), (self.folder / item.name for item in self.items))


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
