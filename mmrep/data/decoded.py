"""Decoded images of a set, kept as uint8 in one file that workers, ranks and later runs share."""

import fcntl
import hashlib
import logging
import mmap
import os
import warnings
import weakref
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import UInt8
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError
from mmrep.data.decode import image_header
from mmrep.data.remote.cache import remove_unused
from mmrep.data.tar import DataError
from mmrep.files import replacing

LOG = logging.getLogger("mmrep")
_CHECK = np.dtype(np.uint32)

Sizes = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Heights and widths in pixels of all images; 0 × 0 for an image that is not kept."""


class DecodedImages:
    """The decoded images of a set in one memory-mapped file, filled image by image as they are first used.

    The pages of the file are in the system's page cache: they are in memory once for all processes, and are dropped
    when memory is short. The file holds a checksum for each image (CRC-32; 0: not decoded yet), then the pixels of
    one image after the other, rows × columns × RGB.

    `get` returns only complete images. `put` writes the pixels before the checksum, so a process that is killed in
    between leaves 0. After a crash of the machine the checksum may be on the disk without the pixels; each process
    therefore compares the two when it first uses an image, and takes a wrong one as not decoded. For the same reason,
    processes may put the same image at once, or see each other's writes in another order.

    The space is reserved on creation and written by system calls, never through the map: a full disk is then an error
    message at the start, while a write to a sparse map would end the process with SIGBUS.

    Each process holds a shared lock on the file as long as the object or an image of it lives; `open` removes only
    files without a lock. The object can be pickled: a worker that receives it opens the same file.
    """

    def __init__(self, path: Path, sizes: Sizes) -> None:
        """Open a file that `open` has made, for images of the same sizes."""
        self.path = path
        self._sizes = sizes
        count, ends = _layout(sizes)
        self._offsets = ends - _pixel_bytes(sizes)
        self._descriptor = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._descriptor)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)
        # The map has a duplicate of the descriptor, and thereby a share in the lock that outlives this object.
        shared = mmap.mmap(self._descriptor, int(ends[-1]), access=mmap.ACCESS_READ)
        self._file = np.frombuffer(shared, np.uint8)
        self._checks = np.frombuffer(shared, _CHECK, count)
        with warnings.catch_warnings(action="ignore"):  # of an array that is read-only, which is intended
            self._pixels = torch.from_numpy(self._file)
        self._verified = bytearray(count)

    @classmethod
    def open(cls, root: Path, digest: str, sizes: Sizes, limit_bytes: int) -> "DecodedImages | None":
        """Open or create the store of a set. Several processes may call this at once.

        Files of other sets are removed, the longest unused first, until those in `root` take at most `limit_bytes`; a
        file that a live process has open stays.

        Args:
            root: folder of all stores. It is made if it is missing.
            digest: digest of everything that determines the pixels: the image files, and how they are decoded.
            sizes: sizes of all images, see `image_sizes`.
            limit_bytes: most bytes of pixels.

        Returns:
            None if the images take more than `limit_bytes`, or there are no pixels.

        Raises:
            ConfigError: no space, or no access.
        """
        pixels = int(_pixel_bytes(sizes).sum())
        if not 0 < pixels <= limit_bytes:
            return None
        size = int(_layout(sizes)[1][-1])
        shape = hashlib.blake2b(np.stack(sizes).astype("<i4").tobytes(), digest_size=4).hexdigest()
        path = root / f"{digest}-{shape}.pixels"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / "lock", mode=0o666):
                _make_room(path, size, limit_bytes)
                if not path.exists() or path.stat().st_size != size:  # another size: the machine crashed in creation
                    _create(path, size)
                os.utime(path)
                return cls(path, sizes)
        except OSError as error:
            raise _no_access(path, error, size) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return DecodedImages, (self.path, self._sizes)

    def get(self, number: int) -> UInt8[torch.Tensor, "3 height width"] | None:
        """Return an image in the channels-last layout of `decode_image`; None if it is not decoded yet.

        The image is a view of read-only memory: writing to it ends the process.
        """
        check = int(self._checks[number])
        if check == 0:
            return None
        height, width, start = self._place(number)
        if not self._verified[number]:
            if _checksum(self._file[start : start + 3 * height * width]) != check:
                return None
            self._verified[number] = 1
        return self._pixels.as_strided((3, height, width), (1, 3 * width, 3), start)

    def put(self, number: int, image: UInt8[torch.Tensor, "3 height width"]) -> None:
        """Keep an image, unless its announced size is 0 × 0.

        Raises:
            DataError: its size is not the announced one.
            ConfigError: it can't be written.
        """
        height, width, start = self._place(number)
        if not height:
            return
        if tuple(image.shape[1:]) != (height, width):
            found = f"{image.shape[1]} × {image.shape[2]}"
            raise DataError(
                f"{self.path}: image {number}: {found} pixels (height × width) where its header announced "
                f"{height} × {width}; did its shard change during the run?"
            )
        pixels = image.permute(1, 2, 0).flatten().numpy()
        try:
            _write(self._descriptor, pixels.data, start)
            check = np.array(_checksum(pixels), _CHECK)
            _write(self._descriptor, memoryview(check.tobytes()), number * _CHECK.itemsize)
        except OSError as error:
            raise _no_access(self.path, error, len(self._file)) from error

    def _place(self, number: int) -> tuple[int, int, int]:
        """Return height, width, and the offset of the pixels."""
        heights, widths = self._sizes
        return int(heights[number]), int(widths[number]), int(self._offsets[number])


def image_sizes(reader: Callable[[int], bytes], count: int) -> Sizes:
    """Return the int32 heights and widths of images from their headers.

    The size is 0 × 0 for an image that is missing (the reader's DataError), unreadable or too large. Such an image is
    never kept, and the loader meets the error itself.

    Args:
        reader: returns the image file of a number from 0 to count - 1.
        count: number of images.
    """
    heights, widths = np.zeros((2, count), np.int32)
    for number in range(count):
        with suppress(ValueError):  # among them DataError
            heights[number], widths[number] = image_header(reader(number))[:2]
    return heights, widths


def _pixel_bytes(sizes: Sizes) -> NDArray[np.int64]:
    heights, widths = sizes
    return 3 * heights.astype(np.int64) * widths


def _layout(sizes: Sizes) -> tuple[int, NDArray[np.int64]]:
    """Return the number of images, and the end of each one's pixels in the file."""
    count = len(sizes[0])
    return count, count * _CHECK.itemsize + np.cumsum(_pixel_bytes(sizes))


def _checksum(pixels: NDArray[np.uint8]) -> int:
    return zlib.crc32(pixels.data) or 1  # 0 means that there are no pixels yet


def _create(path: Path, size: int) -> None:
    """Create a file of zeros, whole or not at all."""
    with replacing(path) as part, part.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)  # macOS can't reserve space; there `put` meets a full disk


def _make_room(path: Path, size: int, limit_bytes: int) -> None:
    """Remove leftovers of killed processes, then unused files until `size` more bytes stay within the limit."""
    # Only these are made under the lock, so that no live process has one. Tables of sizes in the folder are not.
    for left in path.parent.glob(".writing-*.pixels-*"):
        left.unlink()
    others = [(other.stat(), other) for other in path.parent.glob("*.pixels") if other != path]
    total = size + sum(stat.st_size for stat, _ in others)
    for stat, other in sorted(others, key=lambda item: item[0].st_mtime_ns):
        if total > limit_bytes and remove_unused(other):
            total -= stat.st_size
            LOG.info("removed %s (%.1f MB of decoded images, unused for longest)", other, stat.st_size / 1e6)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _no_access(path: Path, error: OSError, size: int) -> ConfigError:
    place = error.filename or path
    return ConfigError(
        f"{place}: {error.strerror} ({size / 1e6:.1f} MB of decoded images); MMREP_CACHE moves the cache"
    )
