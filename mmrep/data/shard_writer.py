"""Tar shards whose bytes depend on the samples only: no times, no owners.

The standard library's tarfile rather than webdataset's ShardWriter: that one takes times from the clock unless told
otherwise, passes a shard's largest size before it closes it, reads its path as a pattern and an address (`pipe:` runs
a shell), and takes a second and more to import.
"""

import io
import tarfile
from pathlib import Path

from mmrep.data.tar import DataError

_BLOCK = 512


class ShardWriter:
    """Writes samples into numbered shards.

    Args:
        folder: of the shards; made when the first is written.
        pattern: of their names, a format string that takes the number.
        most_samples: of a shard.
        most_bytes: of a shard, headers included, unless one sample alone is larger.

    Attributes:
        shards: begun so far.
    """

    def __init__(self, folder: Path, pattern: str, most_samples: int, most_bytes: int) -> None:
        self.shards = 0
        self._folder = folder
        self._pattern = pattern
        self._most_samples = most_samples
        self._most_bytes = most_bytes
        self._tar: tarfile.TarFile | None = None
        self._samples = 0

    def write(self, key: str, members: dict[str, bytes]) -> None:
        """Writes a sample: extensions and their bytes.

        Raises:
            DataError: it can't be written; says why, as in a full disk.
        """
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
        try:
            if self._tar and (self._samples == self._most_samples or self._tar.offset + size > self._most_bytes):
                self.close()
            if self._tar is None:
                self._tar = self._next()
            for extension, data in members.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                self._tar.addfile(member, io.BytesIO(data))
        except OSError as error:
            raise DataError(f"{self._folder}: can't write shard {self.shards - 1}: {error.strerror}") from error
        self._samples += 1

    def close(self) -> None:
        """Completes the shard that is being written."""
        if self._tar is not None:
            tar, self._tar = self._tar, None
            tar.close()

    def _next(self) -> tarfile.TarFile:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / self._pattern.format(self.shards)
        self.shards += 1
        self._samples = 0
        return tarfile.open(path, "w")
