"""Write WebDataset shards whose bytes depend on the samples only."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mmrep.config.checks import ConfigError
from mmrep.data.tar import DataError

_BLOCK = 512


class ShardWriter:
    """Writer of samples into numbered shards, built on webdataset's `TarWriter`.

    webdataset's own `ShardWriter` is not used: it closes a shard only after its size has passed the limit, and it
    treats the path as an address, so that `pipe:` would run a shell.

    Args:
        folder: folder of the shards; it is made when the first one is written.
        pattern: file names, as a format string that takes the number of the shard.
        most_samples: most samples of a shard.
        most_bytes: most bytes of a shard, headers included, unless one sample alone is larger; None: no limit.

    Attributes:
        shards: number of shards begun so far.
    """

    def __init__(self, folder: Path, pattern: str, most_samples: int, most_bytes: int | None = None) -> None:
        self.shards = 0
        self._folder = folder
        self._pattern = pattern
        self._most_samples = most_samples
        self._most_bytes = most_bytes
        self._file: BinaryIO | None = None
        self._tar: Any = None
        self._samples = 0

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Write a sample: its extensions and their bytes, in this order.

        Raises:
            DataError: the file can't be written, for example because the disk is full.
        """
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
        if self._tar and (self._samples == self._most_samples or self._is_full(size)):
            self.close()
        with self._errors():
            if self._tar is None:
                self._begin()
            for extension, data in members.items():
                # One member a call: TarWriter sorts the members of a sample by name.
                self._tar.write({"__key__": key, extension: data})
        self._samples += 1

    def close(self) -> None:
        """Complete the shard that is being written."""
        tar, file = self._tar, self._file
        self._tar = self._file = None
        with self._errors():
            try:
                if tar is not None:
                    tar.close()
            finally:
                if file is not None:
                    file.close()

    def _is_full(self, size: int) -> bool:
        return self._most_bytes is not None and self._tar.tarstream.offset + size > self._most_bytes

    def _begin(self) -> None:
        # Imports torch, which takes seconds: readers of shards do without it.
        from webdataset import TarWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / self._pattern.format(self.shards)).open("wb")
        self.shards += 1
        self._samples = 0
        # No names and times, which would change the bytes. PAX is needed for keys that are long or not ASCII.
        self._tar = TarWriter(
            self._file, user="", group="", mode=0o644, mtime=0, encoder=False, format="PAX_FORMAT", compress=False
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self._folder}: can't write shard {self.shards - 1}: {error.strerror}") from error


@contextmanager
def staged_folder(folder: Path, empty_ok: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `folder` in the end, or removed if something fails.

    Args:
        folder: the final folder, which does not exist yet.
        empty_ok: it may exist if it is empty.

    Raises:
        ConfigError: another process has made `folder` meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists() and not (empty_ok and not any(folder.iterdir())):
            raise ConfigError(f"--output_dir: {folder} was made meanwhile by another process; name another folder")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
