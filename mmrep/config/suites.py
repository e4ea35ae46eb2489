"""Merging suites: those with the same options become one, so that a set they share is evaluated once."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig

LOG = logging.getLogger("mmrep")


class _Place(NamedTuple):
    """A set, its suite, and which of the merged configs it goes to."""

    group: int
    source: str
    config: SetConfig


def merge_suites(suites: Sequence[tuple[str, EvaluationConfig]]) -> list[EvaluationConfig]:
    """Return the sets of all suites in their order, in one config for all suites with the same options.

    The same set in several suites of one config gets the tasks of all. Different sets of one name get the name of their
    suite added (`imagenet1k@clip_benchmark`), so that no two sets have the same name.

    Args:
        suites: the file or other source of each suite, and its content.

    Raises:
        ConfigError: a suite has no sets, or different sets of one name.
    """
    options: list[EvaluationConfig] = []
    places: list[_Place] = []
    for source, suite in suites:
        require(bool(suite.sets), f"{source}: no `sets`; a suite's options hold for its own sets")
        own = dataclasses.replace(suite, sets=[])
        if own not in options:
            options.append(own)
        group = options.index(own)
        for each in suite.sets:
            _add(places, _Place(group, source, each))
    named = _named(places)
    return [
        dataclasses.replace(own, sets=[each.config for each in named if each.group == group])
        for group, own in enumerate(options)
    ]


def _add(places: list[_Place], new: _Place) -> None:
    for i, old in enumerate(places):
        if old.group == new.group and _but_tasks(old.config) == _but_tasks(new.config):
            tasks = list(dict.fromkeys([*old.config.tasks, *new.config.tasks]))
            places[i] = old._replace(config=dataclasses.replace(old.config, task=tasks))
            return
    places.append(new)


def _but_tasks(config: SetConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "task": None, "name": config.result_name}


def _named(places: Sequence[_Place]) -> list[_Place]:
    names = [each.config.result_name for each in places]
    found: dict[str, _Place] = {}
    for place, name in zip(places, names, strict=True):
        own = f"{name}@{Path(place.source).stem.lstrip('-')}" if names.count(name) > 1 else name
        if own in found:
            raise ConfigError(f"{place.source}: two evaluation sets are called {name!r}: give one of them a name")
        found[own] = place._replace(config=dataclasses.replace(place.config, name=own))
    for own, name in zip(found, names, strict=True):
        if own != name:
            LOG.info("several suites have a set called %s: one is called %s here", name, own)
    return list(found.values())
