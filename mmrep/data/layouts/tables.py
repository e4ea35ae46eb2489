"""Tables of image paths and captions: CSV and TSV, as open_clip trains on."""

import csv
from pathlib import Path
from typing import TextIO

from mmrep.config.checks import ConfigError
from mmrep.data.layouts.contents import (
    Contents,
    Item,
    Problem,
    clean_captions,
    existing_folder,
    within_folder,
)
from mmrep.data.regular import regular_stat
from mmrep.data.tar import DataError

_NAMED = {"tab": "\t", "comma": ",", "\\t": "\t"}


def read_table(
    table: Path,
    images: Path,
    split: str,
    image_column: str = "filepath",
    caption_column: str = "title",
    separator: str | None = None,
) -> Contents:
    """Images and captions of a table with a header; rows with the same path are the captions of one image.

    Args:
        table: the file; fields with separators or line ends in them stand in double quotes.
        images: the folder that the paths start in.
        split: what to call the split.
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
        captions.clear()
    return contents


def _separator(given: str | None, file: TextIO) -> str:
    header = file.readline()
    file.seek(0)
    separator = _NAMED.get(given, given) if given else ("\t" if "\t" in header else ",")
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
