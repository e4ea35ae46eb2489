"""Sets of confusable captions in their authors' layout: the annotation files of SugarCrepe and Winoground.

SugarCrepe (Hsieh et al., arXiv 2306.14610): one image, a right caption, one or more wrong ones (`filename`, `caption`,
`negative_caption`), a file for each kind of change. Winoground (Thrush et al., arXiv 2204.03162): two images and two
captions of the same words (`image_0`, `image_1`, `caption_0`, `caption_1`; `collapsed_tag` or `tag` and
`num_main_preds` if any). Either form as JSON (an object of examples by id, or a list), JSON lines or CSV.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import UInt8
from torch import Tensor

from mmrep.config.checks import require
from mmrep.config.evaluation import SetConfig
from mmrep.data.files import is_blank
from mmrep.data.layouts.contents import read_text, within_folder
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.check import PAIR_FILES, local_place
from mmrep.evaluation.sources.records import Records, file_size, read_pixels

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Tried for names without one: Winoground's `ex_0_img_0`."""
_SUGARCREPE = ("filename", "caption", "negative_caption")
_WINOGROUND = ("image_0", "image_1", "caption_0", "caption_1")


class Pair(NamedTuple):
    """An image with its right caption and its wrong ones.

    Attributes:
        key: file and id, and for an example of two images which of them.
        image: the image file.
        captions: the right one, then the wrong ones.
        kinds: the kinds that the example is counted under.
        example: for an example of two images, a number that both have.
    """

    key: str
    image: Path
    captions: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    example: int | None = None


@dataclass(frozen=True)
class PairRecords(Records):
    """The images of a set of confusable captions; the two images of one example follow each other."""

    samples: list[Pair]

    def key(self, position: int) -> str:
        """Return file and id."""
        return self.samples[position].key

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        return read_pixels(self.samples[position].image, self.key(position))

    def texts(self, position: int) -> list[str]:
        """Return the captions, the right one first."""
        return list(self.samples[position].captions)

    def digest(self) -> str:
        """Return a digest of keys, captions and kinds, and of the image files' names and sizes."""
        state = hashlib.blake2b(digest_size=16)
        for pair in self.samples:
            content = (pair.key, pair.captions, pair.kinds, pair.image.name, file_size(pair.image))
            state.update(repr(content).encode())
        return state.hexdigest()

    def files(self) -> list[Path]:
        return [pair.image for pair in self.samples]


def read_pairs(config: SetConfig) -> PairRecords:
    """Read the images and captions of annotation files and an image folder.

    Args:
        config: `path` is a file or a folder of files, one for each kind; `images` the folder of the images.
            `check_place` has found that both exist.

    Raises:
        ConfigError: no annotation file; files of both forms.
        DataError: not such a file, a missing field or image, an empty caption, an id that occurs twice, no examples.
    """
    assert config.images is not None, "for the type checker: check_place requires it"
    place, images = local_place(config), Path(config.images).expanduser()
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    files = [file for file in files if file.suffix in PAIR_FILES]
    require(bool(files), f"evaluation set {config.path}: no {', '.join(PAIR_FILES)} file there")
    pairs: list[Pair] = []
    for file in files:
        found = list(_pairs_of(file, images, len(pairs)))
        if not found:
            raise DataError(f"{file}: no examples in it")
        pairs += found
    seen: set[str] = set()
    for pair in pairs:
        if pair.key in seen:
            raise DataError(f"evaluation set {config.path}: the id {pair.key!r} occurs twice")
        seen.add(pair.key)
    require(
        len({pair.example is None for pair in pairs}) == 1,
        f"evaluation set {config.path}: files of one image an example and of two; make them two sets",
    )
    return PairRecords(pairs)


def _pairs_of(file: Path, images: Path, first: int) -> Iterator[Pair]:
    for number, (identity, entry) in enumerate(_entries(file)):
        where, key = f"{file}: example {identity!r}", f"{file.stem}/{identity}"
        if "image_0" in entry:
            names = [_text(entry, name, where) for name in _WINOGROUND]
            captions = (names[2], names[3])
            for which in (0, 1):
                image = _image(images, names[which], where)
                own = captions if which == 0 else captions[::-1]
                yield Pair(f"{key}/image_{which}", image, own, _winoground_kinds(entry), first + number)
        else:
            name, right, negative = _SUGARCREPE
            wrong = entry.get(negative)
            texts = [
                _text({negative: each}, negative, where) for each in (wrong if isinstance(wrong, list) else [wrong])
            ]
            if not texts:
                raise DataError(f"{where}: {negative!r} is empty")
            image = _image(images, _text(entry, name, where), where)
            yield Pair(key, image, (_text(entry, right, where), *texts), (file.stem,))


def _entries(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the examples of a file with their ids, or with their numbers where they have no ids.

    Raises:
        DataError: not JSON or CSV, an entry that is no object, an id that occurs twice.
    """
    text = read_text(file, "path")
    try:
        if file.suffix == ".csv":
            content: Any = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        elif file.suffix == ".jsonl":
            content = [_json(line, file) for line in text.splitlines() if line.strip()]
        else:
            content = _json(text, file)
    except (ValueError, RecursionError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file}: not {file.suffix[1:].upper()}: {error}") from error
    entries = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else []
    found = []
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise DataError(f"{file}: example {number!r}: expected an object, got {str(entry)[:40]!r}")
        found.append((str(number) if isinstance(content, dict) else str(entry.get("id", number)), entry))
    return found


def _json(text: str, file: Path) -> Any:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(items)
        if len(entry) < len(items):  # json keeps the last of equal keys, silently
            names = [name for name, _ in items]
            raise DataError(f"{file}: the key {next(n for n in names if names.count(n) > 1)!r} occurs twice")
        return entry

    return json.loads(text, object_pairs_hook=unique)


def _text(entry: dict[str, Any], name: str, where: str) -> str:
    """Return a field's text in one line."""
    value = entry.get(name)
    if value is None:
        raise DataError(f"{where}: no {name!r}; expected {', '.join(_SUGARCREPE)} or {', '.join(_WINOGROUND)}")
    line = " ".join(value.split()) if isinstance(value, str) else ""
    if is_blank(line):
        raise DataError(f"{where}: {name!r} is empty or no text: {str(value)[:40]!r}")
    return line


def _image(folder: Path, name: str, where: str) -> Path:
    path = folder / within_folder(folder, name, where)
    for each in (path, *(path.with_name(path.name + suffix) for suffix in _SUFFIXES)):
        if each.is_file():
            return each
    raise DataError(f"{where}: no image {name!r} in {folder}")


def _winoground_kinds(entry: dict[str, Any]) -> tuple[str, ...]:
    fields = {"tag": entry.get("collapsed_tag") or entry.get("tag"), "num_main_preds": entry.get("num_main_preds")}
    return tuple(f"{name} {value}" for name, value in fields.items() if value not in (None, ""))
