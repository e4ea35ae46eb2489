"""The samples of evaluation sets: images with labels or captions, in shards or in files of their own."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from mmrep.data.captions import class_label, text_lines
from mmrep.data.decode import decode_image, read_image
from mmrep.data.files import ARRAY_ERRORS, read_array
from mmrep.data.layouts.contents import Item
from mmrep.data.shards import RemoteShard, Shard, ShardIndex, read_member
from mmrep.data.tar import DataError


class Records(ABC):
    """The samples of a set. Worker processes get a copy, so everything in it must be picklable.

    Subclasses are frozen dataclasses with a field `samples`. All readers raise DataError, naming the sample, where
    something can't be read.
    """

    samples: Sequence[Any]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    @abstractmethod
    def key(self, position: int) -> str:
        """Return a stable, unique name of a sample."""

    @abstractmethod
    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """Return the pixels of a sample as they are stored."""

    def label(self, position: int) -> int:
        """Return the class of a sample."""
        raise DataError(f"{self.key(position)}: the images of this set have no classes")

    def labels(self, position: int) -> list[int]:
        """Return the classes of a sample, where it may have several or none."""
        return [self.label(position)]

    def texts(self, position: int) -> list[str]:
        """Return all captions of a sample, at least one."""
        raise DataError(f"{self.key(position)}: the images of this set have no captions")

    def take(self, positions: Sequence[int]) -> "Records":
        """Return some of the samples, in the order given."""
        return replace(self, samples=[self.samples[position] for position in positions])  # type: ignore[type-var]  # a dataclass

    @abstractmethod
    def digest(self) -> str:
        """Return a digest of names, sizes, labels and captions: copies of a set have the same, wherever they are."""

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """Return the local files whose state `identity` depends on."""

    def identity(self) -> str:
        """Return a digest of these very files, with their places and times. It differs for copies and changed files."""
        return files_identity(self.digest(), self.files())


def read_pixels(path: Path, sample: str = "") -> UInt8[Tensor, "3 height width"]:
    """Return the pixels of an image file.

    Raises:
        DataError: it can't be read or decoded. The message names the file and the sample.
    """
    where = f"{path} (example {sample!r})" if sample else str(path)
    try:
        return decode_image(path.read_bytes())
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def file_size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        DataError: the file is gone.
    """
    return _stat(path).st_size


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error


def files_identity(digest: str, files: Iterable[Path]) -> str:
    """Return a digest of a content's digest and of the state of the files that hold it.

    It has the time of a file's last change (ctime), which can't be set back, as that of its content (mtime) can.

    Raises:
        DataError: a file is gone.
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
class ShardRecords(Records):
    """Samples of WebDataset shards.

    Attributes:
        samples: shard and row of each.
        captions: `txt`, `json:KEY`, `cls`, or `npy` for several classes an image.
        classes: number of classes; 0 where samples have captions.
        most: use the first so many captions; None: all.
        folders: how many folders of a shard's path are part of its keys, where file names alone are not unique.
    """

    samples: list[tuple[ShardIndex, int]]
    captions: str
    classes: int = 0
    most: int | None = None
    folders: int = 0

    def key(self, position: int) -> str:
        """Return shard and key."""
        index, row = self.samples[position]
        place = str(index.path).split("/")[-1 - self.folders :]
        return "/".join([*place, index.keys[row].decode()])

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        return read_image(*self.samples[position])

    def label(self, position: int) -> int:
        return class_label(*self.samples[position], self.classes)

    def labels(self, position: int) -> list[int]:
        if self.captions == "npy":
            return _several(*self.samples[position], self.classes)
        return [self.label(position)]

    def texts(self, position: int) -> list[str]:
        return text_lines(*self.samples[position], self.captions)[: self.most]

    def digest(self) -> str:
        """Return a digest of the shards' sizes and indexes (keys, offsets, CRCs if any), rows and kind of label."""
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

    def _shards_without_crcs(self) -> list[Shard]:
        return list({id(index): index.path for index, _ in self.samples if not index.crcs}.values())

    def files(self) -> list[Path]:
        """Return the local shards without CRCs; those with CRCs are told apart by these."""
        return [each for each in self._shards_without_crcs() if isinstance(each, Path)]

    def identity(self) -> str:
        remote = [
            (each.address, each.version, each.size)
            for each in self._shards_without_crcs()
            if isinstance(each, RemoteShard)
        ]
        return files_identity(f"{self.digest()} {remote}", self.files())


def _several(index: ShardIndex, row: int, classes: int) -> list[int]:
    """Return the classes of a multi-hot `npy` member.

    Raises:
        DataError: no array of numbers, one of another length, or one with anything but 0 and 1 in it.
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
class FileRecords(Records):
    """Samples whose images are files of their own.

    Attributes:
        folder: the folder that the names start in.
        samples: name and label or captions of each.
        most: use the first so many captions; None: all.
    """

    folder: Path
    samples: list[Item]
    most: int | None = None

    def key(self, position: int) -> str:
        """Return the file's place in the folder."""
        return self.samples[position].name

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        return read_pixels(self.folder / self.samples[position].name)

    def label(self, position: int) -> int:
        item = self.samples[position]
        if item.label is None:
            raise DataError(f"{self.folder / item.name}: has captions, but no class")
        return item.label

    def texts(self, position: int) -> list[str]:
        item = self.samples[position]
        if not item.captions:
            raise DataError(f"{self.folder / item.name}: no caption")
        return list(item.captions[: self.most])

    def digest(self) -> str:
        """Return a digest of every file's name and size, its label and captions."""
        state = hashlib.blake2b(f"files {self.most}".encode(), digest_size=16)
        for item, path in zip(self.samples, self.files(), strict=True):
            state.update(repr((item.name, file_size(path), item.label, item.captions)).encode())
        return state.hexdigest()

    def files(self) -> list[Path]:
        return [self.folder / item.name for item in self.samples]


class Found(NamedTuple):
    """The content of a set.

    Attributes:
        records: its samples.
        classnames: in the order of labels; none for captions.
        templates: texts with `{c}` for the class name.
        multilabel: whether an image may have several classes.
    """

    records: Records
    classnames: list[str]
    templates: list[str]
    multilabel: bool = False
