"""`mmrep data pack`: image files and their annotations written as WebDataset shards, complete or not at all."""

import hashlib
import json
import logging
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrep.config.checks import ConfigError, at_least, require
from mmrep.data.draws import permutation
from mmrep.data.layouts.contents import Contents, Item, Problem
from mmrep.data.layouts.files import SIGNATURE_BYTES, content_extension, image_kind
from mmrep.data.shard_writer import ShardWriter
from mmrep.data.tar import DataError

TRAIN = "train"
REPORT = "pack.json"
_NAMED_IN_LOG = 20
_DIGEST_BYTES = 16

_UNSAFE = re.compile(r"[^\w-]")

_log = logging.getLogger("mmrep")

Progress = Callable[[str, int, int], None]
"""Called with what is done now, how many images of it are done, and how many there are."""


@dataclass(frozen=True)
class PackSpec:
    """How a set is packed.

    Attributes:
        samples_per_shard: at most.
        max_shard_mb: most megabytes (10^6 bytes) of a shard, unless one sample alone is larger.
        shuffle: seed of the samples' order; None keeps the source's.
        allow_missing: most problems that may be skipped: a number, or as a float a share of everything listed.
    """

    samples_per_shard: int = 10_000
    max_shard_mb: float = 1000.0
    shuffle: int | None = None
    allow_missing: int | float = 0

    def __post_init__(self) -> None:
        at_least("--samples_per_shard", self.samples_per_shard, 1)
        at_least("--max_shard_mb", self.max_shard_mb, 0.01)
        at_least("--shuffle", self.shuffle, 0)
        at_least("--allow_missing", self.allow_missing, 0)
        share = isinstance(self.allow_missing, float)
        require(
            not share or self.allow_missing < 1,
            f"--allow_missing: expected a number, or a share below 1, got {self.allow_missing}",
        )


@dataclass
class _Packed:
    """What has been written.

    Attributes:
        samples: of each split.
        shards: of each split.
        captions: in all.
        total: the sum of the samples' digests modulo 2^128, so that neither order nor sharding matters.
    """

    samples: Counter[str] = field(default_factory=Counter)
    shards: dict[str, int] = field(default_factory=dict)
    captions: int = 0
    total: int = 0

    @property
    def identity(self) -> str:
        """Equal for sets of the same keys, image bytes, captions and labels."""
        return f"{self.total:0{2 * _DIGEST_BYTES}x}"


def pack(
    read: Callable[[], Contents], output_dir: Path, spec: PackSpec, progress: Progress | None = None
) -> dict[str, Any]:
    """Writes a set as shards: `train/000000.tar`, …; any other split in CLIP_benchmark's layout, `test/0.tar`, ….

    The bytes are a pure function of annotations, images and `spec`. Images are copied as they are; the extension
    follows their content.

    Args:
        read: gives what is to be packed.
        output_dir: a folder that does not exist yet; it appears complete or not at all.
        spec: how.
        progress: called after each image.

    Returns:
        The report, which lies in `output_dir` as pack.json too.

    Raises:
        ConfigError: `output_dir` exists; see the reader.
        DataError: more problems than `spec.allow_missing`, nothing to pack, an image that changed meanwhile.
    """
    output_dir = output_dir.absolute()
    if output_dir.exists():
        raise ConfigError(f"--output_dir: {output_dir} exists; name another folder, or remove it first")
    contents = read()
    for split in {item.split for item in contents.items}:
        require(re.fullmatch(r"[\w-]+", split) is not None, f"--split: {split!r} is no folder name")
    items, kinds, problems = _check_images(contents, progress)
    problems = contents.problems + problems
    _check_budget(problems, len(contents.items) + len(contents.problems), spec)
    if not items:
        raise DataError("nothing to pack: no sample is left")
    with staged_folder(output_dir) as folder:
        packed = _write_splits(folder, contents.images, items, kinds, spec, progress)
        _write_side_files(folder, contents, packed)
        report = _report(contents, packed, problems, spec)
        (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _log.info("packed %s", summary(report))
    return report


def summary(report: dict[str, Any]) -> str:
    """A report in one line."""
    splits = ", ".join(f"{name} {part['samples']:,}" for name, part in report["splits"].items())
    samples = sum(part["samples"] for part in report["splits"].values())
    texts = f" with {report['captions']:,} captions" if report["captions"] else f" of {report['classes']:,} classes"
    skipped = f"; {len(report['skipped']):,} problems skipped, see {REPORT}" if report["skipped"] else ""
    return f"{samples:,} samples{texts} ({splits}){skipped}; identity {report['identity']}"


def _check_images(contents: Contents, progress: Progress | None) -> tuple[list[Item], list[str], list[Problem]]:
    """The items whose image can be packed, their extensions, and the problems of the others."""
    good, kinds, problems = [], [], []
    for done, item in enumerate(contents.items, 1):
        try:
            kinds.append(image_kind(contents.images / item.name))
            good.append(item)
        except ValueError as error:
            problems.append(Problem(item.name, str(error)))
        if progress:
            progress("checking", done, len(contents.items))
    return good, kinds, problems


def _check_budget(problems: list[Problem], listed: int, spec: PackSpec) -> None:
    allowed = spec.allow_missing
    if isinstance(allowed, float):
        allowed = int(allowed * listed)
    for problem in problems[:_NAMED_IN_LOG]:
        _log.warning("%s: %s", problem.item, problem.reason)
    if len(problems) > _NAMED_IN_LOG:
        _log.warning("… and %d more", len(problems) - _NAMED_IN_LOG)
    if len(problems) > allowed:
        first = problems[0]
        raise DataError(
            f"{len(problems)} of {listed} listed can't be packed ({first.item}: {first.reason}"
            f"{'; …' if len(problems) > 1 else ''}) and {allowed} may be missing; nothing was written; correct the"
            f" source, or go on without them: --allow_missing {len(problems)}"
        )


def sample_keys(items: list[Item]) -> list[str]:
    """A key for each item, by the first rule that makes all of them differ: the image's stem, folder_stem, its whole
    path, its number. Letters, digits, `_` and `-` stay, all else becomes `_`."""
    keys: list[str] = []
    for parts in (1, 2, 0):
        keys = [_key(item.name, parts) for item in items]
        if len(set(keys)) == len(keys):
            return keys
    return [f"{number:09d}" for number in range(len(items))]


def _key(name: str, parts: int) -> str:
    folder, slash, file = name.rpartition("/")
    stem = file.rpartition(".")[0] or file
    return _UNSAFE.sub("_", "_".join(f"{folder}{slash}{stem}".split("/")[-parts:]))


def _write_splits(
    folder: Path, images: Path, items: list[Item], kinds: list[str], spec: PackSpec, progress: Progress | None
) -> _Packed:
    keys, packed = sample_keys(items), _Packed()
    order = range(len(items)) if spec.shuffle is None else permutation(spec.shuffle, len(items), 0).tolist()
    writers: dict[str, ShardWriter] = {}
    try:
        for done, i in enumerate(order, 1):
            item = items[i]
            members = _members(images / item.name, item, kinds[i])
            if item.split not in writers:
                pattern = "{:06d}.tar" if item.split == TRAIN else "{}.tar"
                most = int(spec.max_shard_mb * 1e6)
                writers[item.split] = ShardWriter(folder / item.split, pattern, spec.samples_per_shard, most)
            writers[item.split].write(keys[i], members)
            packed.samples[item.split] += 1
            packed.captions += len(item.captions)
            packed.total = (packed.total + _sample_digest(item.split, keys[i], members)) % 256**_DIGEST_BYTES
            if progress:
                progress("packing", done, len(items))
    finally:
        for writer in writers.values():
            writer.close()
    packed.shards = {split: writer.shards for split, writer in sorted(writers.items())}
    return packed


def _members(image: Path, item: Item, kind: str) -> dict[str, bytes]:
    try:
        data = image.read_bytes()
    except OSError as error:
        raise DataError(f"{image}: {error.strerror}; it was there before packing began") from error
    if content_extension(data[:SIGNATURE_BYTES]) != kind:
        raise DataError(f"{image}: changed while packing; pack again")
    members = {kind: data}
    if item.captions:
        members["txt"] = "\n".join(item.captions).encode()
    if item.label is not None:
        members["cls"] = str(item.label).encode()
    if item.record is not None:
        members["json"] = json.dumps(item.record).encode()
    return members


def _sample_digest(split: str, key: str, members: dict[str, bytes]) -> int:
    state = hashlib.blake2b(f"{split}/{key}".encode(), digest_size=_DIGEST_BYTES)
    for extension, data in members.items():
        state.update(
            f"\0{extension} {len(data)}\0".encode() + hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
        )
    return int.from_bytes(state.digest(), "little")


def _write_side_files(folder: Path, contents: Contents, packed: _Packed) -> None:
    for split, shards in packed.shards.items():
        if split != TRAIN:
            (folder / split / "nshards.txt").write_text(f"{shards}\n")
    lists = {"classnames.txt": contents.classnames, "zeroshot_classification_templates.txt": contents.templates}
    if not contents.classnames:
        lists = {"dataset_type.txt": ["retrieval"]}
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _report(contents: Contents, packed: _Packed, problems: list[Problem], spec: PackSpec) -> dict[str, Any]:
    sources = []
    for path in contents.sources:
        with path.open("rb") as file:
            sources.append({"file": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return {
        "schema": 1,
        "identity": packed.identity,
        "splits": {
            split: {"samples": packed.samples[split], "shards": shards} for split, shards in packed.shards.items()
        },
        "captions": packed.captions,
        "classes": len(contents.classnames),
        "shuffle": spec.shuffle,
        "sources": sources,
        "skipped": [problem._asdict() for problem in problems],
    }


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name in the end, or vanishes where something fails.

    Raises:
        ConfigError: `folder` has come up meanwhile.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            raise ConfigError(f"--output_dir: {folder} was made meanwhile by someone else; name another folder")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
