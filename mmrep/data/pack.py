"""`mmrep data pack`: write image files and their annotations as WebDataset shards, complete or not at all."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmrep.config.checks import ConfigError, require
from mmrep.config.shards import PackSpec
from mmrep.data.draws import permutation
from mmrep.data.layouts.contents import SIGNATURE_BYTES, Contents, Item, Problem, content_extension, image_kind
from mmrep.data.shard_writer import ShardWriter, staged_folder
from mmrep.data.tar import DataError

LOG = logging.getLogger("mmrep")
TRAIN = "train"
REPORT = "pack.json"
_NAMED_IN_LOG = 20
_DIGEST_BYTES = 16
_UNSAFE = re.compile(r"[^\w-]")

Progress = Callable[[str, int, int], None]
"""Called with the stage (checking, packing), the images done in it, and the number of images."""


def pack(
    read: Callable[[], Contents], output_dir: Path, spec: PackSpec, progress: Progress | None = None
) -> dict[str, Any]:
    """Write a set as shards.

    The training split becomes `train/000000.tar`, …; any other split gets CLIP_benchmark's layout (`test/0.tar`, …).
    The bytes are a pure function of annotations, images and `spec`. Images are copied unchanged; their extension
    follows their content.

    Args:
        read: returns what is to be packed.
        output_dir: a folder that does not exist yet; it appears complete or not at all.
        spec: the options.
        progress: called after each image.

    Returns:
        The report, which is also written to pack.json in `output_dir`.

    Raises:
        ConfigError: `output_dir` exists; see also the reader.
        DataError: more problems than `spec.allow_missing`, nothing to pack, an image that changed meanwhile.
    """
    output_dir = output_dir.absolute()
    if output_dir.exists():
        raise ConfigError(f"--output_dir: {output_dir} exists; name another folder, or remove it first")
    contents = read()
    for split in {item.split for item in contents.items}:
        require(re.fullmatch(r"[\w-]+", split) is not None, f"--split: {split!r} is not a folder name")
    listed = len(contents.items) + len(contents.problems)
    items, kinds, problems = _check_images(contents, progress)
    problems = contents.problems + problems
    _check_budget(problems, listed, spec)
    if not items:
        raise DataError("nothing to pack: no sample is left")
    with staged_folder(output_dir) as folder:
        report = _write_splits(folder, contents, items, kinds, spec, progress)
        report["skipped"] = [problem._asdict() for problem in problems]
        _write_side_files(folder, contents, report)
    LOG.info("packed %s", _summary(report))
    return report


def _summary(report: dict[str, Any]) -> str:
    splits = ", ".join(f"{name} {part['samples']:,}" for name, part in report["splits"].items())
    samples = sum(part["samples"] for part in report["splits"].values())
    texts = f" with {report['captions']:,} captions" if report["captions"] else f" of {report['classes']:,} classes"
    skipped = f"; {len(report['skipped']):,} problems skipped, see {REPORT}" if report["skipped"] else ""
    return f"{samples:,} samples{texts} ({splits}){skipped}; identity {report['identity']}"


def _check_images(contents: Contents, progress: Progress | None) -> tuple[list[Item], list[str], list[Problem]]:
    """Return the items whose image can be packed, their extensions, and the problems of the other items."""
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
        LOG.warning("%s: %s", problem.item, problem.reason)
    if len(problems) > _NAMED_IN_LOG:
        LOG.warning("… and %d more", len(problems) - _NAMED_IN_LOG)
    if len(problems) > allowed:
        first = problems[0]
        raise DataError(
            f"{len(problems)} of {listed} listed can't be packed ({first.item}: {first.reason}"
            f"{'; …' if len(problems) > 1 else ''}) and {allowed} may be missing; nothing was written; correct the"
            f" source, or go on without them: --allow_missing {len(problems)}"
        )


def sample_keys(items: list[Item]) -> list[str]:
    """Return a key for each item.

    The first of these rules that makes all keys differ is used: the stem of the image's name, folder_stem, the whole
    path, the item's number. Letters, digits, `_` and `-` stay, everything else becomes `_`.
    """
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
    folder: Path, contents: Contents, items: list[Item], kinds: list[str], spec: PackSpec, progress: Progress | None
) -> dict[str, Any]:
    """Write the shards of all splits, and return the report on them."""
    keys = sample_keys(items)
    order = range(len(items)) if spec.shuffle is None else permutation(spec.shuffle, len(items), 0).tolist()
    writers: dict[str, ShardWriter] = {}
    samples: Counter[str] = Counter()
    identity = captions = 0
    try:
        for done, i in enumerate(order, 1):
            item = items[i]
            members = _members(contents.images / item.name, item, kinds[i])
            if item.split not in writers:
                pattern = "{:06d}.tar" if item.split == TRAIN else "{}.tar"
                most = int(spec.max_shard_mb * 1e6)
                writers[item.split] = ShardWriter(folder / item.split, pattern, spec.samples_per_shard, most)
            writers[item.split].write(keys[i], members)
            samples[item.split] += 1
            captions += len(item.captions)
            # A sum does not depend on the order and the shards: equal sets have equal identities.
            identity = (identity + _sample_digest(item.split, keys[i], members)) % 256**_DIGEST_BYTES
            if progress:
                progress("packing", done, len(items))
    finally:
        for writer in writers.values():
            writer.close()
    return {
        "schema": 1,
        "identity": f"{identity:0{2 * _DIGEST_BYTES}x}",
        "splits": {name: {"samples": samples[name], "shards": writers[name].shards} for name in sorted(writers)},
        "captions": captions,
        "classes": len(contents.classnames),
        "shuffle": spec.shuffle,
        "sources": [{"file": path.name, "sha256": _sha256(path)} for path in contents.sources],
    }


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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_side_files(folder: Path, contents: Contents, report: dict[str, Any]) -> None:
    for split, part in report["splits"].items():
        if split != TRAIN:
            (folder / split / "nshards.txt").write_text(f"{part['shards']}\n")
    lists = {"classnames.txt": contents.classnames, "zeroshot_classification_templates.txt": contents.templates}
    if not contents.classnames:
        lists = {"dataset_type.txt": ["retrieval"]}
    for name, lines in lists.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
