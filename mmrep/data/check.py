"""`mmrep data check`: what is wrong with shards, every problem named, before a run meets it."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError
from mmrep.data.captions import class_label, kept_lines
from mmrep.data.decode import MAX_PIXELS, decode_image, image_header, image_notes
from mmrep.data.img2dataset import Accounting
from mmrep.data.indexing import build_index, load_index, sidecar
from mmrep.data.parallel import over
from mmrep.data.paths import find_beside, read_lines
from mmrep.data.shards import SEVERAL, ShardIndex, image_extension, read_member, several_images
from mmrep.data.tar import DataError

_SHOWN_NOTES = 10


class Check(NamedTuple):
    """What is looked at.

    Attributes:
        deep: decode every image, and compare every byte with the CRCs of an index file beside the shard; otherwise
            structure, texts, labels, and the images' headers are read.
        captions: kinds of caption that every sample has to have; none: those that most samples of a shard have.
        classes: labels have to be below this number; None: as many as the classnames.txt beside the shard has lines.
        max_pixels: limit of an image.
    """

    deep: bool = False
    captions: tuple[str, ...] = ()
    classes: int | None = None
    max_pixels: int = MAX_PIXELS


class ShardReport(NamedTuple):
    """What was found in one shard.

    Attributes:
        path: the shard.
        samples: samples that it holds; 0 where it can't be indexed.
        problems: lines that name shard, sample, member and reason: what a run would stop at.
        notes: the same for what is unusual, but read.
        bad: samples with a problem.
    """

    path: Path
    samples: int
    problems: list[str]
    notes: list[str]
    bad: int


class Report(NamedTuple):
    """What was found.

    Attributes:
        shards: of each shard.
        downloads: img2dataset's account of them, where it left one.
    """

    shards: list[ShardReport]
    downloads: str | None

    @property
    def problems(self) -> list[str]:
        """Of all shards."""
        return [problem for shard in self.shards for problem in shard.problems]

    @property
    def notes(self) -> list[str]:
        """Of all shards."""
        return [note for shard in self.shards for note in shard.notes]

    @property
    def samples(self) -> int:
        """Samples read."""
        return sum(shard.samples for shard in self.shards)

    def text(self) -> str:
        """As lines for the terminal."""
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
        """For a JSON file."""
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
    """Indexes every shard anew and reads its samples.

    Args:
        paths: local shards.
        check: what is looked at.
        workers: processes.
        progress: called with (shards done, shards).
    """
    check = check or Check()
    shards: list[ShardReport] = []
    account = Accounting()
    for report in over(paths, _Checker(check), workers, progress):
        try:
            account.add(report.path, report.samples)
        except DataError as error:
            report = report._replace(problems=[*report.problems, str(error)])
        shards.append(report)
    return Report(shards, account.text())


class _Checker:
    """Checks one shard; an object, so that another process can be given it."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __call__(self, path: Path) -> ShardReport:
        problems: list[str] = []
        notes: list[str] = []
        try:
            index = build_index(path)
            if self.check.deep and sidecar(path).is_file():
                index = self._as_indexed(index, problems, notes)
        except DataError as error:
            return ShardReport(path, 0, [str(error)], [], 0)
        except OSError as error:
            return ShardReport(path, 0, [f"{path}: {error.strerror}"], [], 0)
        wanted = self.check.captions or self._usual(index, notes)
        classes = sys.maxsize
        if "cls" in wanted:
            try:
                classes = self._classes(path)
            except ConfigError as error:
                problems.append(str(error))
        bad = 0
        blank: list[str] = []
        for row in range(len(index)):
            found = self._sample(index, row, wanted, classes, notes, blank)
            problems += found
            bad += bool(found)
        for keys, what in (
            (several_images(index), f"have {SEVERAL}"),
            (blank, "have blank lines among their captions, which are left out (CLIP_benchmark: captions too)"),
        ):
            if keys:
                notes.append(f"{path}: {len(keys)} samples, the first {keys[0]!r}, {what}")
        return ShardReport(path, len(index), problems, notes, bad)

    @staticmethod
    def _as_indexed(now: ShardIndex, problems: list[str], notes: list[str]) -> ShardIndex:
        """The index as a run loads it, with the layout and the CRCs of the file beside the shard."""
        index, beside = load_index(now.path), sidecar(Path(str(now.path))).name
        if not index.crcs:
            notes.append(
                f"{now.path}: bytes not compared: {beside} holds no CRCs, or is damaged; run `mmrep data index` again"
            )
        elif index.digest != now.digest:
            problems.append(
                f"{now.path}: names, sizes or order of its members differ from {beside}: damaged or replaced since; "
                "restore it, or run `mmrep data index` again if the change was meant"
            )
        return index

    @staticmethod
    def _usual(index: ShardIndex, notes: list[str]) -> tuple[str, ...]:
        """The kinds of caption that at least half of the samples have."""
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

    def _classes(self, path: Path) -> int:
        """The number of classes: as asked for, else as a run finds it."""
        if self.check.classes is not None:
            return self.check.classes
        beside = find_beside(str(path), "classnames.txt")
        return sys.maxsize if beside is None else len(read_lines(beside, str(path)))

    def _sample(
        self,
        index: ShardIndex,
        row: int,
        wanted: tuple[str, ...],
        classes: int,
        notes: list[str],
        blank: list[str],
    ) -> list[str]:
        readers: list[Callable[[], object]] = [partial(self._image, index, row, notes)]
        for kind in wanted:
            if kind == "cls":
                readers.append(partial(class_label, index, row, classes))
            else:
                readers.append(partial(self._text, index, row, kind, blank))
        if self.check.deep and index.crcs:
            held = [extension for extension, places in index.members.items() if places[row, 0] >= 0]
            readers += [partial(read_member, index, row, extension) for extension in held]
        problems: dict[str, None] = {}
        for read in readers:
            try:
                read()
            except DataError as error:
                problems[str(error)] = None
        return list(problems)

    @staticmethod
    def _text(index: ShardIndex, row: int, kind: str, blank: list[str]) -> None:
        if kept_lines(index, row, kind)[1]:
            blank.append(index.keys[row].decode())

    def _image(self, index: ShardIndex, row: int, notes: list[str]) -> None:
        extension = image_extension(index, row)
        data = read_member(index, row, extension)
        where = f"{index.sample(row)}, member {extension!r}"
        try:
            if self.check.deep:
                decode_image(data, self.check.max_pixels)
            else:
                image_header(data, self.check.max_pixels)
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        if self.check.deep:
            notes += [f"{where}: {note}" for note in self._notes(data)]

    def _notes(self, data: bytes) -> list[str]:
        try:
            return image_notes(data, self.check.max_pixels)
        except ValueError as error:  # in what a run doesn't read: metadata, further frames
            return [f"read, but damaged behind its pixels: {error}"]
