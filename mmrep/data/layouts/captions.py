"""Readers of captioned sets: COCO, Karpathy's splits, CSV and TSV tables, RedCaps."""

import csv
from pathlib import Path
from typing import Any, TextIO

from mmrep.config.checks import ConfigError, one_of
from mmrep.data.files import regular_stat
from mmrep.data.layouts.contents import (
    Contents,
    Item,
    Problem,
    clean_captions,
    existing_folder,
    read_lists,
    value_of,
    within_folder,
)
from mmrep.data.tar import DataError

KARPATHY_SPLITS = ("train", "val", "test")
REDCAPS_FIELDS = ("caption", "raw_caption")
_REDCAPS_KEPT = ("image_id", "subreddit", "url", "score", "created_utc")
"""Fields of RedCaps that become the json member. The author's name is personal, and of no use in training."""
_SEPARATORS = {"tab": "\t", "comma": ",", "\\t": "\t"}


def read_coco(annotations: Path, images: Path, split: str) -> Contents:
    """Read a `captions_*.json` in the order of its images.

    Args:
        annotations: the file; `images` have `id` and `file_name`, `annotations` have `id`, `image_id` and `caption`.
        images: the image folder.
        split: name of the split.

    Raises:
        ConfigError: a file or folder is missing.
        DataError: another format, or a name that leaves the folder.
    """
    existing_folder(images, "--images")
    pictures, captions = read_lists(annotations, "images", "annotations")
    contents = Contents(images, [annotations])
    files: dict[Any, str] = {}
    for i, picture in enumerate(pictures):
        where = f"{annotations}: images[{i}]"
        number, name = value_of(picture, "id", (int, str), where), value_of(picture, "file_name", str, where)
        within_folder(images, name, where)
        if number in files:
            contents.problems.append(Problem(f"image {number} ({name})", "duplicate image id"))
        else:
            files[number] = name
    texts: dict[Any, list[object]] = {number: [] for number in files}
    seen = set()
    for i, caption in enumerate(captions):
        where = f"{annotations}: annotations[{i}]"
        number, image = value_of(caption, "id", (int, str), where), value_of(caption, "image_id", (int, str), where)
        if number in seen:
            contents.problems.append(Problem(f"caption {number}", "duplicate caption id"))
        elif image not in texts:
            contents.problems.append(Problem(f"caption {number}", f"unknown image id {image}"))
        else:
            texts[image].append(caption.get("caption"))
        seen.add(number)
    taken: set[str] = set()
    for number, name in files.items():
        _add(contents, taken, f"image {number} ({name})", name, split, texts[number], str(annotations))
    return contents


def read_karpathy(annotations: Path, images: Path, splits: list[str], restval: bool = True) -> Contents:
    """Read a `dataset_*.json` in its order.

    Args:
        annotations: the file; `images` have `filename`, maybe `filepath`, `split`, and `sentences` with `raw`.
        images: the folder that `filepath` (COCO: val2014, train2014) is relative to.
        splits: some of train, val, test.
        restval: add the split `restval` to train, as is usual for COCO.

    Raises:
        ConfigError: a file or folder is missing, or a split is unknown.
        DataError: another format, a name that leaves the folder, or a split without images.
    """
    for split in splits:
        one_of("--split", split, KARPATHY_SPLITS)
    existing_folder(images, "--images")
    (pictures,) = read_lists(annotations, "images")
    contents = Contents(images, [annotations])
    taken: set[str] = set()
    found: set[str] = set()
    for i, picture in enumerate(pictures):
        where = f"{annotations}: images[{i}]"
        split = value_of(picture, "split", str, where)
        if split not in (*KARPATHY_SPLITS, "restval"):
            raise DataError(f"{where}: unknown split {split[:40]!r} (known: {', '.join(KARPATHY_SPLITS)}, restval)")
        if split == "restval" and restval:
            split = "train"
        found.add(split)
        if split not in splits:
            continue
        name = value_of(picture, "filename", str, where)
        folder = value_of(picture, "filepath", str, where) if picture.get("filepath") is not None else ""
        name = f"{folder}/{name}" if folder else name
        sentences = value_of(picture, "sentences", list, where)
        texts = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
        _add(contents, taken, f"image {name}", name, split, texts, where)
    if missing := [split for split in splits if split not in found]:
        raise DataError(
            f"{annotations}: no images of the split {', '.join(missing)} (it has {', '.join(sorted(found)) or 'none'});"
            " choose with --split"
        )
    return contents


def _add(
    contents: Contents, taken: set[str], item: str, name: str, split: str, texts: list[object], where: str
) -> None:
    """Add an image with its captions, unless its file is in `taken` already."""
    place = within_folder(contents.images, name, where)
    if place in taken:
        contents.problems.append(Problem(item, "this file is listed twice"))
        return
    taken.add(place)
    if captions := clean_captions(texts, item, contents.problems):
        contents.items.append(Item(place, split, captions))


def read_redcaps(annotations: list[Path], images: Path, split: str, caption_field: str = "caption") -> Contents:
    """Read RedCaps' annotation files in their order.

    Args:
        annotations: files, or folders of `*.json`.
        images: the folder with `{subreddit}/{image_id}.jpg`, as RedCaps' downloader writes it.
        split: name of the split.
        caption_field: `caption` (cleaned by the authors of RedCaps) or `raw_caption`.

    Raises:
        ConfigError: a file or folder is missing.
        DataError: another format, or a name that leaves the folder.
    """
    one_of("--caption_field", caption_field, REDCAPS_FIELDS)
    existing_folder(images, "--images")
    files = [file for path in annotations for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(f"--annotations: no *.json in {', '.join(map(str, annotations))}")
    contents = Contents(images, files)
    seen: set[str] = set()
    for file in files:
        (entries,) = read_lists(file, "annotations")
        for i, entry in enumerate(entries):
            where = f"{file}: annotations[{i}]"
            number, subreddit = (value_of(entry, name, str, where) for name in ("image_id", "subreddit"))
            place = within_folder(images, f"{subreddit}/{number}.jpg", where)
            item = f"image {number} ({place})"
            if number in seen:
                contents.problems.append(Problem(item, "duplicate image id"))
                continue
            seen.add(number)
            if captions := clean_captions([entry.get(caption_field)], item, contents.problems):
                record = {name: entry[name] for name in _REDCAPS_KEPT if name in entry}
                contents.items.append(Item(place, split, captions, record=record))
    return contents


def read_table(
    table: Path,
    images: Path,
    split: str,
    image_column: str = "filepath",
    caption_column: str = "title",
    separator: str | None = None,
) -> Contents:
    """Read a CSV or TSV table with a header, as open_clip trains on. Rows with the same path caption one image.

    Args:
        table: the file; fields that contain separators or line breaks are in double quotes.
        images: the folder that the paths are relative to.
        split: name of the split.
        image_column: name of the column of paths.
        caption_column: name of the column of captions.
        separator: one character, `tab` or `comma`; None: a tab if the header has one, else a comma.

    Raises:
        ConfigError: a missing file, folder or column; a bad separator.
        DataError: not UTF-8, unbalanced quotes, a path that leaves the folder.
    """
    existing_folder(images, "--images")
    contents = Contents(images, [table])
    texts: dict[str, list[object]] = {}
    try:
        regular_stat(table)
        with table.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _separator(separator, file)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            columns = next(rows, [])
            picked = [_column(columns, name, table) for name in (image_column, caption_column)]
            for row in filter(None, rows):
                where = f"line {rows.line_num}"
                if len(row) != len(columns):
                    contents.problems.append(Problem(where, f"{len(row)} fields, but the header has {len(columns)}"))
                    continue
                if delimiter == "\t" and any("\t" in field for field in row):
                    contents.problems.append(Problem(where, "a tab within quotes: are they stray?"))
                    continue
                name, caption = (row[column] for column in picked)
                if not name.strip():
                    contents.problems.append(Problem(where, f"nothing under {image_column!r}"))
                    continue
                place = within_folder(images, name.strip(), f"{table}: {where}")
                texts.setdefault(place, []).append(caption)
    except OSError as error:
        raise ConfigError(f"--table: can't read {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{table}: line {rows.line_num}: {error}; check the quotes and --sep") from error
    for place, captions in texts.items():
        if lines := clean_captions(captions, place, contents.problems):
            contents.items.append(Item(place, split, lines))
        captions.clear()  # a large table would be in memory twice
    return contents


def _separator(given: str | None, file: TextIO) -> str:
    header = file.readline()
    file.seek(0)
    separator = _SEPARATORS.get(given, given) if given else ("\t" if "\t" in header else ",")
    if len(separator) != 1 or separator in '"\r\n':
        raise ConfigError(f"--sep: expected one character, tab or comma, got {given!r}")
    return separator


def _column(columns: list[str], name: str, table: Path) -> int:
    if columns.count(name) != 1:
        found = ", ".join(columns)[:200] or "none"
        raise ConfigError(
            f"{table}: expected one column {name!r}, found {found}; see --image_column, --caption_column, --sep"
        )
    return columns.index(name)
