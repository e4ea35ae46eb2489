"""Image files by their content."""

import stat
from pathlib import Path

SIGNATURE_BYTES = 16


def content_extension(start: bytes) -> str | None:
    """The extension of an image file, from its first 16 bytes; None where it is no JPEG, PNG or WebP."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    return None


def image_kind(path: Path) -> str:
    """The extension that an image file's content stands for.

    Raises:
        ValueError: the reason why it can't be packed: no such file, no permission, empty, another format.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ValueError("not a file")
        with path.open("rb") as file:
            start = file.read(SIGNATURE_BYTES)
    except OSError as error:
        raise ValueError("no such file" if isinstance(error, FileNotFoundError) else str(error.strerror)) from error
    if not start:
        raise ValueError("empty file")
    kind = content_extension(start)
    if kind is None:
        raise ValueError("not a JPEG, PNG or WebP file")
    return kind
