"""Evaluation sets: opened from files or shards, or held out of training."""

import logging
from dataclasses import replace
from typing import Literal, NamedTuple

from mmrep.config.data import ValidationConfig
from mmrep.config.evaluation import SetConfig
from mmrep.data.captions import class_label, text_lines
from mmrep.data.decode import read_image
from mmrep.data.sources import Sample, Sources
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.check import check_place, check_set, opened_by_task
from mmrep.evaluation.sources.files import read_files
from mmrep.evaluation.sources.ground_truth import open_instances
from mmrep.evaluation.sources.names import warn_of_doubles
from mmrep.evaluation.sources.pairs import read_pairs
from mmrep.evaluation.sources.records import Records, ShardRecords
from mmrep.evaluation.sources.webdataset import read_webdataset

LOG = logging.getLogger("mmrep")

OwnTask = Literal["zeroshot", "retrieval", "instance", "pairs"]
"""The task that a set is made for."""

__all__ = ["EvalSet", "OwnTask", "check_set", "open_set", "validation_sets"]


class EvalSet(NamedTuple):
    """A set to evaluate on.

    Attributes:
        name: its name in results.
        task: `zeroshot` for classes, `retrieval` for captions, or the one task that can read the set.
        records: images with labels or captions.
        classnames: for `zeroshot`, in the order of labels.
        templates: for `zeroshot`, with `{c}` for the class name.
        multilabel: whether an image may have several classes.
        tasks: the tasks to evaluate; `task` alone if empty.
        config: the config that the set was opened from; None for a validation split.
    """

    name: str
    task: OwnTask
    records: Records
    classnames: list[str]
    templates: list[str]
    multilabel: bool = False
    tasks: tuple[str, ...] = ()
    config: SetConfig | None = None

    def keys(self) -> list[str]:
        """Return a stable name for every image."""
        return [self.records.key(position) for position in range(len(self.records))]


def open_set(config: SetConfig) -> EvalSet:
    """Open a set of any format.

    Raises:
        ConfigError: a part of it is missing, a task does not fit, or the number of class names is wrong.
        DataError: a damaged shard, wrong samples, missing images.
    """
    check_place(config)
    if opened_by_task(config):
        return _own_set(config)
    found = read_webdataset(config) if config.format == "webdataset" else read_files(config)
    task: OwnTask = "zeroshot" if found.classnames else "retrieval"
    warn_of_doubles(config, found.classnames)
    tasks = tuple(task if each == "auto" else each for each in config.tasks)
    return EvalSet(config.result_name, task, *found, tasks=tasks, config=config)


def _own_set(config: SetConfig) -> EvalSet:
    """Open a set that one task alone can read."""
    if config.ground_truth is not None:
        task: OwnTask = "instance"
        records: Records = open_instances(config)
    else:
        task, records = "pairs", read_pairs(config)
    return EvalSet(config.result_name, task, records, [], [], tasks=config.tasks, config=config)


def _usable(sample: Sample) -> bool:
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
    """Return the held-out samples as sets, one for each source; at most `max_samples` in all, spread evenly.

    Args:
        sources: the run's sources.
        config: options of the validation split.
        skip_bad: read all samples now and leave out, with a warning each, those that can't be used. Otherwise
            evaluation stops at them.

    Raises:
        DataError: a shard can't be read, or with `skip_bad` every sample of a source.
    """
    by_source: dict[int, list[Sample]] = {}
    for sample in sources.held_out(config.max_samples, skip_bad):
        if not skip_bad or _usable(sample):
            by_source.setdefault(id(sample.captioner), []).append(sample)
    return [
        _validation_set("validation" if len(by_source) == 1 else f"validation_{i}", samples)
        for i, samples in enumerate(by_source.values())
    ]


def _validation_set(name: str, samples: list[Sample]) -> EvalSet:
    captioner = samples[0].captioner
    records = ShardRecords(
        [(sample.shard, sample.row) for sample in samples], captioner.kind, len(captioner.classnames)
    )
    # Shards of several folders may have the same names.
    depth = max(str(index.path).count("/") for index, _ in records.samples)
    for folders in range(depth + 1):
        records = replace(records, folders=folders)
        if len({records.key(position) for position in range(len(records))}) == len(records):
            break
    return EvalSet(
        name=name,
        task="zeroshot" if captioner.kind == "cls" else "retrieval",
        records=records,
        classnames=captioner.classnames,
        templates=captioner.templates,
    )
