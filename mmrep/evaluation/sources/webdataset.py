"""Evaluation sets in CLIP_benchmark's layout: WebDataset shards in a local folder or behind an address."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError, require
from mmrep.config.data import DataConfig
from mmrep.config.evaluation import SetConfig
from mmrep.data.captions import kept_lines
from mmrep.data.indexing import load_index
from mmrep.data.paths import read_lines
from mmrep.data.remote import ShardCache, is_remote, read_remote, remote_folders
from mmrep.data.shards import SEVERAL, RemoteShard, Shard, ShardIndex, image_extension, several_images
from mmrep.evaluation.sources.check import (
    CLASSNAMES,
    TEMPLATES,
    asked_kind,
    check_one_label,
    dataset_type,
    local_place,
    no_split,
)
from mmrep.evaluation.sources.names import names_given, templates_of
from mmrep.evaluation.sources.records import Found, ShardRecords

LOG = logging.getLogger("mmrep")

_THREADS = 4
"""Remote shards fetched at a time."""


def read_webdataset(config: SetConfig) -> Found:
    """Read a set in CLIP_benchmark's layout.

    Labels and captions of local shards are read now, so that errors in them are found before any model runs.

    Raises:
        ConfigError: a part of the layout is missing, a task that does not fit, a wrong number of class names.
        DataError: a damaged shard, a sample without image, label or caption, a remote file that can't be had.
    """
    remote = is_remote(config.path)
    folder = config.path.rstrip("/") if remote else str(local_place(config))
    where = f"evaluation set {config.path}"
    indexes = _indexes(_shards(config, folder))
    samples = [(index, row) for index in indexes for row in range(len(index))]
    for sample in samples:
        image_extension(*sample)
    _warn_of_doubles(indexes, where)
    several = [key for index in indexes for key in several_images(index)]
    if several:
        LOG.warning("%s: %d samples, the first %r, have %s", where, len(several), several[0], SEVERAL)
    said = dataset_type(_read(f"{folder}/dataset_type.txt"))
    kind = asked_kind(config) or ("captions" if said == "retrieval" else "classes")
    if kind == "captions":
        _check_members(config, indexes, "txt", kind)
        records = ShardRecords(samples, "txt", most=config.captions_per_image)
        if not remote:
            blank = sum(bool(kept_lines(*sample, "txt")[1]) for sample in samples)
            if blank:
                LOG.warning("%s: %d samples have blank lines, which CLIP_benchmark counts as captions", where, blank)
        return Found(records, [], [])
    multilabel = said == "multilabel"
    if multilabel:
        check_one_label(config)
    member = "npy" if multilabel else "cls"
    _check_members(config, indexes, member, kind)
    own, templates = (_lines(folder, name, where) for name in (CLASSNAMES, TEMPLATES))
    if own is None and not config.classnames:
        raise ConfigError(f"{where}: no {CLASSNAMES}; give `classnames`, a file or imagenet")
    if templates is None and not (config.templates or config.classnames):
        raise ConfigError(f"{where}: no {TEMPLATES}; give `templates`, a file or imagenet")
    classnames = names_given(config, None if own is None else len(own)) if config.classnames else list(own or [])
    records = ShardRecords(samples, member, len(classnames))
    if not remote:
        _check_labels(records, where)
    return Found(records, classnames, templates_of(config, templates), multilabel)


def _shards(config: SetConfig, folder: str) -> list[Shard]:
    where, split = f"evaluation set {config.path}", f"{folder}/{config.split}"
    text = _read(f"{split}/nshards.txt")
    if text is None:
        raise _missing_split(config, folder)
    text = text.strip()
    counted = re.fullmatch(r"[0-9]{1,6}", text) is not None and int(text) > 0
    require(counted, f"{split}/nshards.txt: expected a number, got {text[:40]!r}")
    places = [f"{split}/{shard}.tar" for shard in range(int(text))]
    if is_remote(folder):
        defaults = DataConfig()
        cache = ShardCache(cache_root() / "shards", int(defaults.cache_gb * 2**30))
        return [RemoteShard(place, cache) for place in places]
    for place in places:
        require(Path(place).is_file(), f"{where}: nshards.txt says {text} shards, but {place} is missing")
    return [Path(place) for place in places]


def _missing_split(config: SetConfig, folder: str) -> ConfigError:
    if not is_remote(folder):
        return ConfigError(f"evaluation set {config.path}: no {config.split}/nshards.txt")
    found = remote_folders(f"{folder}/")
    if found:
        return no_split(config, config.split, found)
    return ConfigError(
        f"evaluation set {config.path}: no {config.split}/nshards.txt there: no such split, or not a set in "
        "CLIP_benchmark's layout"
    )


def _indexes(shards: Sequence[Shard]) -> list[ShardIndex]:
    """Return the shards' indexes; remote shards without an index file are fetched, several at a time."""
    if all(isinstance(shard, Path) for shard in shards):
        return [load_index(shard) for shard in shards]
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(load_index, shards))


def _read(place: str) -> str | None:
    """Return the text of a small file, local or remote; None if it does not exist."""
    if is_remote(place):
        data = read_remote(place, missing_ok=True)
    else:
        data = Path(place).read_bytes() if Path(place).is_file() else None
    return None if data is None else data.decode("utf-8", "replace")


def _lines(folder: str, name: str, where: str) -> list[str] | None:
    return None if _read(f"{folder}/{name}") is None else read_lines(f"{folder}/{name}", where)


def _warn_of_doubles(indexes: Sequence[ShardIndex], where: str) -> None:
    """Warn of keys in several shards: sample ids include the shard, so nothing else would notice a copied shard."""
    counts = Counter(key for index in indexes for key in index.keys.tolist())
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        LOG.warning(
            "%s: %d keys occur in several shards, such as %r: if these are the same samples, they count twice",
            where, len(twice), twice[0].decode(),
        )  # fmt: skip


def _check_members(config: SetConfig, indexes: Sequence[ShardIndex], member: str, kind: str) -> None:
    """Raise ConfigError where no sample has the member that the task needs."""
    if any(member in index.members for index in indexes):
        return
    has = sorted({extension for index in indexes for extension in index.members})
    raise ConfigError(
        f"evaluation set {config.path}: task {', '.join(config.tasks)} needs {kind}, in members {member!r}; its samples"
        f" have {', '.join(has)}"
    )


def _check_labels(records: ShardRecords, where: str) -> None:
    """Raise DataError for a label without a name; warn of names without images."""
    highest = max(max(records.labels(position), default=-1) for position in range(len(records)))
    if len(records) >= records.classes > highest + 1:
        LOG.warning(
            "%s: %d class names, but the highest label is %d: are they this set's?", where, records.classes, highest
        )
