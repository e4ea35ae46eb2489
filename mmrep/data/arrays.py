"""Files of arrays (.npz): written whole or not at all, and read within their own size."""

import io
import tokenize
import uuid
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmrep.data.regular import regular_stat

ARRAY_ERRORS = (
    OSError, ValueError, TypeError, EOFError, KeyError, IndexError, AttributeError, OverflowError, MemoryError,
    NotImplementedError, RuntimeError, SyntaxError, RecursionError, tokenize.TokenError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What zipfile and numpy raise for damaged files."""


def write_arrays(arrays: dict[str, Any], place: Path) -> None:
    """Writes an .npz file: into a temporary one, then renamed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files nobody else may read: shards and their indexes are shared.
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def read_file(place: Path, most: int) -> bytes:
    """Return the content of a small file.

    Raises:
        OSError: no regular file, or more than `most` bytes, which are not read.
    """
    size = regular_stat(place).st_size
    if size > most:
        raise OSError(f"{size:,} bytes, more than the {most:,} that such a file can have")
    return place.read_bytes()


def read_arrays(data: bytes) -> dict[str, NDArray] | None:
    """The arrays of an .npz file as `write_arrays` makes it; None where it is damaged.

    No more memory is taken than the file has bytes, whatever its headers claim; compressed files are refused, since
    they may stand for any amount.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > len(data):
                return None
            return {member.filename.removesuffix(".npy"): read_array(archive.read(member)) for member in members}
    except ARRAY_ERRORS:
        return None


def read_array(data: bytes) -> NDArray:
    """The array of an .npy file, for which no more memory is taken than the file has bytes.

    Raises:
        one of ARRAY_ERRORS: damaged, or of objects.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    content = stream.read()
    # Python's integers: numpy's would overflow.
    count = 1
    for side in shape:
        count *= int(side)
    if dtype.hasobject or min(shape, default=0) < 0 or count * dtype.itemsize != len(content):
        raise ValueError("an array of another size than its header says, or of objects")
    return np.ndarray(shape, dtype, content, order="F" if fortran else "C").copy()
