"""What every layout's reader gives: items to pack, problems with their reasons; and the checks they share."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError
from mmrep.data.regular import can_be_a_name, read_regular
from mmrep.data.spelling import is_blank
from mmrep.data.tar import DataError

_UNUSUAL = frozenset(("", ".", ".."))
"""Parts of a name that are no file's or folder's; most names have none, and pathlib takes a while for each."""


class Problem(NamedTuple):
    """Something listed that can't be packed.

    Attributes:
        item: what it is, as the annotations name it.
        reason: why not.
    """

    item: str
    reason: str


class Omission(Problem):
    """A problem without which the rest is as good: an empty caption, a file that nothing names.

    Of the others the annotations or the images are not what they should be.
    """


class Item(NamedTuple):
    """A sample to be.

    Attributes:
        name: the image's place within the image folder, with slashes; whether it is there is not known yet.
        split: train, val, test or what the user calls it.
        captions: one line each.
        label: its class.
        record: what else is kept, as the json member.
    """

    name: str
    split: str
    captions: tuple[str, ...] = ()
    label: int | None = None
    record: dict[str, Any] | None = None


@dataclass
class Contents:
    """What a reader found.

    Attributes:
        images: the image folder.
        sources: the annotation files, whose digests are reported.
        items: in the order of the annotations, or of sorted names.
        problems: everything that was listed and is no item.
        classnames: in the order of labels; none for captions.
        templates: with `{c}` for the class name.
    """

    images: Path
    sources: list[Path]
    items: list[Item] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    classnames: list[str] = field(default_factory=list)
    templates: list[str] = field(default_factory=list)


def existing_folder(path: Path, option: str) -> Path:
    """`path`, if it is a folder; else ConfigError."""
    if not path.is_dir():
        raise ConfigError(f"{option}: no such folder: {path}")
    return path


def within_folder(folder: Path, name: str, where: str) -> str:
    """The place within the image folder of a file that an annotation names.

    An absolute name is taken if it lies in the folder. Links in the folder are the user's own and may lead anywhere.

    Raises:
        DataError: the name leaves the folder, or is no file name.
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
        raise DataError(f"{where}: {name[:80]!r} is no file name")
    return str(place)


def read_text(path: Path, option: str) -> str:
    """The text of an annotation file.

    Raises:
        ConfigError: it can't be read.
        DataError: not UTF-8.
    """
    try:
        return read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{option}: can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start})") from error


def read_lists(path: Path, *names: str) -> list[list[dict[str, Any]]]:
    """The lists of objects that a JSON file holds under `names`.

    Raises:
        ConfigError: the file can't be read.
        DataError: not JSON, no such list, an entry that is no object.
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
            raise DataError(f"{path}: {name}[{bad}] is no object")
        lists.append(entries)
    return lists


def value_of(entry: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """The value under `name`.

    Raises:
        DataError: there is none, or not of this kind.
    """
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
    """Captions as single lines; what is empty or no text becomes a problem, one for the item if nothing is left."""
    lines, bad = [], []
    for number, text in enumerate(texts):
        line = " ".join(text.split()) if isinstance(text, str) else ""
        if not _is_unicode(line):
            bad.append(Omission(item, f"caption {number} is not valid Unicode"))
        elif is_blank(line):
            reason = f"caption {number} is empty" if isinstance(text, str) else f"caption {number} is no text"
            bad.append(Omission(item, reason))
        else:
            lines.append(line)
    if lines:
        problems += bad
    else:
        problems.append(Omission(item, "no caption" + (f" ({bad[0].reason})" if bad else "")))
    return tuple(lines)
