"""`mmrep data check`: name every problem of shards before a run meets it."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError
from mmrep.data.captions import class_label, kept_lines
from mmrep.data.decode import MAX_PIXELS, decode_image, image_header, image_notes
from mmrep.data.img2dataset import ShardStats, account, stats_of
from mmrep.data.indexing import build_index, load_index, sidecar
from mmrep.data.parallel import over
from mmrep.data.paths import find_beside, read_lines
from mmrep.data.shards import SEVERAL, ShardIndex, image_extension, read_member, several_images
from mmrep.data.tar import DataError

_SHOWN_NOTES = 10


class Check(NamedTuple):
    """Options of `check_shards`.

    Attributes:
        deep: decode every image, and compare every byte with the CRCs of an index file beside the shard. Otherwise
            structure, texts, labels and image headers are read.
        captions: kinds of caption that every sample must have; empty: those that most samples of a shard have.
        classes: labels must be below this number; None: the number of lines of the classnames.txt beside the shard.
        max_pixels: larger images are problems.
    """

    deep: bool = False
    captions: tuple[str, ...] = ()
    classes: int | None = None
    max_pixels: int = MAX_PIXELS


class ShardReport(NamedTuple):
    """The findings in one shard.

    Attributes:
        path: the shard.
        samples: number of samples; 0 if it can't be indexed.
        problems: lines that name shard, sample, member and reason. A run would stop at each.
        notes: such lines for what is unusual, but can be read.
        bad: number of samples with a problem.
    """

    path: Path
    samples: int
    problems: list[str]
    notes: list[str]
    bad: int


class Report(NamedTuple):
    """The findings in all shards.

    Attributes:
        shards: a report for each shard.
        downloads: img2dataset's statistics in a line, if there are any.
    """

    shards: list[ShardReport]
    downloads: str | None

    @property
    def problems(self) -> list[str]:
        """The problems of all shards."""
        return [problem for shard in self.shards for problem in shard.problems]

    @property
    def notes(self) -> list[str]:
        """The notes of all shards."""
        return [note for shard in self.shards for note in shard.notes]

    @property
    def samples(self) -> int:
        """The number of samples."""
        return sum(shard.samples for shard in self.shards)

    def text(self) -> str:
        """Return the report as lines for the terminal."""
        notes = self.notes
        shown = [f"note: {note}" for note in notes[:_SHOWN_NOTES]]
        if len(notes) > _SHOWN_NOTES:
            shown.append(f"… and {len(notes) - _SHOWN_NOTES} more notes (--output writes all of them)")
        if self.downloads:
            shown.append(self.downloads)
        bad = sum(shard.bad for shard in self.shards)
        share = f", {bad} bad samples ({bad / self.samples:.2%})" if bad else ""
        unreadable = sum(not shard.samples for shard in self.shards)
        shards = f"{len(self.shards)} shards{f', {unreadable} of them unreadable' if unreadable else ''}"
        counts = f"{shards}, {self.samples} samples, {len(self.problems)} problems{share}"
        return "\n".join([*self.problems, *shown, counts])

    def to_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        return {
            "schema": 1,
            "shards": [shard._asdict() | {"path": str(shard.path)} for shard in self.shards],
            "samples": self.samples,
            "problems": len(self.problems),
            "downloads": self.downloads,
        }


def check_shards(
    paths: list[Path], check: Check | None = None, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Index every shard anew and read its samples.

    Args:
        paths: local shards.
        check: the options.
        workers: number of processes.
        progress: called with (shards done, shards).
    """
    shards: list[ShardReport] = []
    stats: list[ShardStats | None] = []
    for report in over(paths, partial(_check_shard, check or Check()), workers, progress):
        try:
            stats.append(stats_of(report.path, report.samples))
        except DataError as error:
            report = report._replace(problems=[*report.problems, str(error)])
        shards.append(report)
    return Report(shards, account(stats))


def _check_shard(check: Check, path: Path) -> ShardReport:
    problems: list[str] = []
    notes: list[str] = []
    try:
        index = build_index(path)
        if check.deep and sidecar(path).is_file():
            index = _as_indexed(index, path, problems, notes)
    except DataError as error:
        return ShardReport(path, 0, [str(error)], [], 0)
    except OSError as error:
        return ShardReport(path, 0, [f"{path}: {error.strerror}"], [], 0)
    kinds = check.captions or _usual_kinds(index, notes)
    classes = sys.maxsize
    if "cls" in kinds:
        try:
            classes = _number_of_classes(check, path)
        except ConfigError as error:
            problems.append(str(error))
    bad = 0
    blank: list[str] = []
    for row in range(len(index)):
        readers: list[Callable[[], object]] = [partial(_check_image, check, index, row, notes)]
        for kind in kinds:
            if kind == "cls":
                readers.append(partial(class_label, index, row, classes))
            else:
                readers.append(partial(_check_text, index, row, kind, blank))
        if check.deep and index.crcs:
            readers += [partial(read_member, index, row, extension) for extension in index.extensions(row)]
        found: dict[str, None] = {}  # two readers may find the same problem
        for read in readers:
            try:
                read()
            except DataError as error:
                found[str(error)] = None
        problems += found
        bad += bool(found)
    for keys, what in (
        (several_images(index), f"have {SEVERAL}"),
        (blank, "have blank lines among their captions, which are left out (CLIP_benchmark: captions too)"),
    ):
        if keys:
            notes.append(f"{path}: {len(keys)} samples, the first {keys[0]!r}, {what}")
    return ShardReport(path, len(index), problems, notes, bad)


def _as_indexed(now: ShardIndex, path: Path, problems: list[str], notes: list[str]) -> ShardIndex:
    """Return the index as a run loads it, with the CRCs of the file beside the shard."""
    index, beside = load_index(path), sidecar(path).name
    if not index.crcs:
        notes.append(f"{path}: bytes not compared: {beside} holds no CRCs, or is damaged; run `mmrep data index` again")
    elif index.digest != now.digest:
        problems.append(
            f"{path}: names, sizes or order of its members differ from {beside}: damaged or replaced since; "
            "restore it, or run `mmrep data index` again if the change was meant"
        )
    return index


def _usual_kinds(index: ShardIndex, notes: list[str]) -> tuple[str, ...]:
    """Return the kinds of caption that at least half of the samples have."""
    counts = {kind: int((index.members[kind][:, 0] >= 0).sum()) for kind in ("txt", "cls") if kind in index.members}
    for kind, count in counts.items():
        if 2 * count < len(index):
            notes.append(
                f"{index.path}: only {count} of {len(index)} samples have a member {kind!r}: not checked, unless "
                f"asked for by --caption {kind}"
            )
    if not counts:
        notes.append(f"{index.path}: no member 'txt' or 'cls': captions not checked, unless named by --caption")
    return tuple(kind for kind, count in counts.items() if 2 * count >= len(index))


def _number_of_classes(check: Check, path: Path) -> int:
    if check.classes is not None:
        return check.classes
    beside = find_beside(str(path), "classnames.txt")
    return sys.maxsize if beside is None else len(read_lines(beside, str(path)))


def _check_text(index: ShardIndex, row: int, kind: str, blank: list[str]) -> None:
    if kept_lines(index, row, kind)[1]:
        blank.append(index.keys[row].decode())


def _check_image(check: Check, index: ShardIndex, row: int, notes: list[str]) -> None:
    extension = image_extension(index, row)
    data = read_member(index, row, extension)
    where = f"{index.sample(row)}, member {extension!r}"
    try:
        if not check.deep:
            image_header(data, check.max_pixels)
            return
        decode_image(data, check.max_pixels)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    try:
        found = image_notes(data, check.max_pixels)
    except ValueError as error:  # in parts that a run doesn't read: metadata, further frames
        found = [f"read, but damaged behind its pixels: {error}"]
    notes += [f"{where}: {note}" for note in found]
