"""The result of every layout's reader, and the checks that the readers share."""

import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError
from mmrep.data.files import can_be_a_name, is_blank, read_regular
from mmrep.data.tar import DataError

SIGNATURE_BYTES = 16
_UNUSUAL = frozenset(("", ".", ".."))
"""Parts of a path that need a closer look. Most paths have none, and pathlib is slow."""


class Problem(NamedTuple):
    """Something listed that can't be packed.

    Attributes:
        item: its name in the annotations.
        reason: why it can't be packed.
    """

    item: str
    reason: str


class Omission(Problem):
    """A problem that leaves the rest of the set sound: an empty caption, or a file that no annotation names.

    Any other problem means that the annotations or the images are not what they should be.
    """


class Item(NamedTuple):
    """A future sample.

    Attributes:
        name: path of the image within the image folder, with slashes. The file may be missing.
        split: train, val, test, or the user's own name.
        captions: single lines.
        label: the class.
        record: further fields, kept as the json member.
    """

    name: str
    split: str
    captions: tuple[str, ...] = ()
    label: int | None = None
    record: dict[str, Any] | None = None


@dataclass
class Contents:
    """The result of a reader.

    Attributes:
        images: the image folder.
        sources: the annotation files, whose digests are reported.
        items: in the order of the annotations, or of sorted names.
        problems: everything that was listed and is not an item.
        classnames: in the order of labels; empty for captions.
        templates: prompts with `{c}` for the class name.
    """

    images: Path
    sources: list[Path]
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classnames: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)


def existing_folder(path: Path, option: str) -> Path:
    """Return `path`; raise ConfigError unless it is a folder."""
    if not path.is_dir():
        raise ConfigError(f"{option}: no such folder: {path}")
    return path


def within_folder(folder: Path, name: str, where: str) -> str:
    """Return the path within the image folder of a file that an annotation names.

    An absolute name is accepted if it lies in the folder. Links inside the folder are the user's own and may lead
    anywhere.

    Raises:
        DataError: the name leaves the folder, or is not a file name.
    """
    if _UNUSUAL.isdisjoint(name.split("/")) and can_be_a_name(name):
        return name
    place = PurePosixPath(name)
    if place.is_absolute():
        root = PurePosixPath(folder.absolute())
        place = place.relative_to(root) if place.is_relative_to(root) else place
    if place.is_absolute() or ".." in place.parts:
        raise DataError(f"{where}: {name[:80]!r} leaves the image folder {folder}; correct the name, or give --images")
    if not place.parts or not can_be_a_name(name):
        raise DataError(f"{where}: {name[:80]!r} is not a file name")
    return str(place)


def content_extension(start: bytes) -> str | None:
    """Return the extension of an image from its first 16 bytes; None if it is not a JPEG, PNG or WebP file."""
    if start.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def image_kind(path: Path) -> str:
    """Return the extension that fits the content of an image file.

    Raises:
        ValueError: the reason why the file can't be packed: missing, no permission, empty, another format.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait forever
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


def read_text(path: Path, option: str) -> str:
    """Return the text of an annotation file.

    Raises:
        ConfigError: the file can't be read.
        DataError: it is not UTF-8.
    """
    try:
        return read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{option}: can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_lists(path: Path, *names: str) -> list[list[dict[str, Any]]]:
    """Return the lists of objects that a JSON file holds under `names`.

    Raises:
        ConfigError: the file can't be read.
        DataError: it is not JSON, has no such list, or an entry is not an object.
    """
    text = read_text(path, "--annotations")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {str(error)[:200]}") from error
    lists = []
    for name in names:
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{path}: no list under {name!r}; is it the file of this format?")
        bad = next((i for i, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if bad is not None:
            raise DataError(f"{path}: {name}[{bad}] is not an object")
        lists.append(entries)
    return lists


def value_of(entry: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Return the value under `name`; raise DataError if there is none or it has another type."""
    value = entry.get(name)
    lone = isinstance(value, str) and not _is_unicode(value)
    if name not in entry or not isinstance(value, kind) or isinstance(value, bool) or lone:
        got = repr(value)[:40] if name in entry else "nothing"
        raise DataError(f"{where}: unexpected value under {name!r}: {got}")
    return value


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which JSON can spell and no file or terminal can hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def clean_captions(texts: Iterable[object], item: str, problems: list[Problem]) -> tuple[str, ...]:
    """Return captions as single lines.

    Every caption that is empty or not a text is added to `problems`; if none is left, the item is added instead.
    """
    lines, bad = [], []
    for number, text in enumerate(texts):
        line = " ".join(text.split()) if isinstance(text, str) else ""
        if not _is_unicode(line):
            bad.append(Omission(item, f"caption {number} is not valid Unicode"))
        elif is_blank(line):
            reason = f"caption {number} is empty" if isinstance(text, str) else f"caption {number} is not a text"
            bad.append(Omission(item, reason))
        else:
            lines.append(line)
    problems += bad if lines else [Omission(item, "no caption" + (f" ({bad[0].reason})" if bad else ""))]
    return tuple(lines)
