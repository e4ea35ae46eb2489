"""Evaluation sets: what lies on disk in CLIP_benchmark's layout, or was held out of training."""

import logging
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from mmrep.config.checks import ConfigError, require
from mmrep.config.data import ValidationConfig
from mmrep.config.evaluation import SetConfig
from mmrep.data.captions import class_label, text_lines
from mmrep.data.indexing import load_index
from mmrep.data.paths import read_lines
from mmrep.data.places import resolve_place
from mmrep.data.shards import ShardIndex
from mmrep.data.sources import Sample, Sources
from mmrep.data.tar import DataError
from mmrep.evaluation.records import Records, ShardRecords

LOG = logging.getLogger("mmrep")

Task = Literal["zeroshot", "retrieval", "instance", "pairs"]

CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


class EvalSet(NamedTuple):
    """A set to evaluate on.

    Attributes:
        name: in results.
        task: what its records hold: `zeroshot` (classes) or `retrieval` (captions), or what the set was made for
            (`instance`, `pairs`).
        records: images with labels or captions.
        classnames: for `zeroshot`, in the order of labels.
        templates: for `zeroshot`, with `{c}` for the class name.
        multilabel: whether an image may have several classes.
        tasks: what is asked, `task` alone if empty.
        config: where the set was opened from; None for a validation split.
    """

    name: str
    task: Task
    records: Records
    classnames: list[str]
    templates: list[str]
    multilabel: bool = False
    tasks: tuple[str, ...] = ()
    config: SetConfig | None = None

    def keys(self) -> list[str]:
        """A stable name for every image."""
        return [self.records.key(position) for position in range(len(self.records))]


def check_set(config: SetConfig) -> Path:
    """The folder of a set, found to be one before anything heavy is imported.

    Raises:
        ConfigError: no such folder, no such split, no nshards.txt.
    """
    folder = Path(resolve_place(config.path))
    require(folder.is_dir(), f"evaluation set {config.path}: no such folder")
    split = folder / config.split
    if not split.is_dir():
        found = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise ConfigError(
            f"evaluation set {config.path}: no split {config.split!r} (it has {', '.join(found) or 'none'})"
        )
    require((split / "nshards.txt").is_file(), f"evaluation set {config.path}: no {config.split}/nshards.txt")
    return folder


def open_set(config: SetConfig) -> EvalSet:
    """A set in CLIP_benchmark's layout.

    Raises:
        ConfigError: a part of the layout is missing.
        DataError: a damaged shard.
    """
    folder = check_set(config)
    text = (folder / config.split / "nshards.txt").read_text(encoding="utf-8").strip()
    require(text.isdigit() and int(text) > 0, f"{folder}/{config.split}/nshards.txt: expected a number, got {text!r}")
    samples: list[tuple[ShardIndex, int]] = []
    for shard in range(int(text)):
        path = folder / config.split / f"{shard}.tar"
        require(path.is_file(), f"evaluation set {config.path}: nshards.txt says {text} shards, but {path} is missing")
        index = load_index(path)
        samples += [(index, row) for row in range(len(index))]
    task = _task(config, folder)
    tasks = tuple(task if each == "auto" else each for each in config.tasks)
    name = config.name or folder.resolve().name
    if task == "retrieval":
        return EvalSet(name, "retrieval", ShardRecords(samples, "txt"), [], [], tasks=tasks, config=config)
    classnames = read_lines(folder / CLASSNAMES, f"evaluation set {config.path}")
    twice = [name for name, count in Counter(classnames).items() if count > 1]
    if twice:
        LOG.warning(
            "evaluation set %s: class names that occur twice can't be told apart: %s", config.path, ", ".join(twice)
        )
    templates = read_lines(folder / TEMPLATES, f"evaluation set {config.path}")
    require(
        all("{c}" in template for template in templates),
        f"evaluation set {config.path}: a template without {{c}} for the class name in {TEMPLATES}",
    )
    records = ShardRecords(samples, "cls", len(classnames))
    return EvalSet(name, "zeroshot", records, classnames, templates, tasks=tasks, config=config)


def _task(config: SetConfig, folder: Path) -> Task:
    if config.tasks[0] != "auto":
        return "retrieval" if config.tasks[0] == "retrieval" else "zeroshot"
    kind = folder / "dataset_type.txt"
    return "retrieval" if kind.is_file() and kind.read_text(encoding="utf-8").strip() == "retrieval" else "zeroshot"


def _usable(sample: Sample) -> bool:
    from mmrep.data.decode import read_image  # and with it torch, which naming a set does not need

    kind = sample.captioner.kind
    try:
        read_image(sample.shard, sample.row)
        if kind == "cls":
            class_label(sample.shard, sample.row, len(sample.captioner.classnames))
        else:
            text_lines(sample.shard, sample.row, kind)
    except DataError as error:
        LOG.warning("left out of the validation split: %s", error)
        return False
    return True


def validation_sets(sources: Sources, config: ValidationConfig, skip_bad: bool = False) -> list[EvalSet]:
    """The held-out samples as sets, one for each source; at most `max_samples` in all, spread evenly.

    Args:
        sources: of the run.
        config: which samples are held out.
        skip_bad: read all of them now, and leave out, with a warning each, what can't be used; otherwise evaluation
            will stop there.

    Raises:
        DataError: a shard or, with `skip_bad`, every sample of a source can't be read.
    """
    by_source: dict[int, list[Sample]] = {}
    for sample in sources.held_out(config.max_samples, skip_bad):
        if not skip_bad or _usable(sample):
            by_source.setdefault(id(sample.captioner), []).append(sample)
    sets = []
    for i, samples in enumerate(by_source.values()):
        captioner = samples[0].captioner
        sets.append(
            EvalSet(
                name="validation" if len(by_source) == 1 else f"validation_{i}",
                task="zeroshot" if captioner.kind == "cls" else "retrieval",
                records=ShardRecords(
                    [(sample.shard, sample.row) for sample in samples], captioner.kind, len(captioner.classnames)
                ),
                classnames=captioner.classnames,
                templates=captioner.templates,
            )
        )
    return sets
