"""Several suites as one: sets that occur in more than one are evaluated once, on all that is asked of them."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig

LOG = logging.getLogger("mmrep")


def merge_suites(suites: Sequence[tuple[str, EvaluationConfig]]) -> EvaluationConfig:
    """One config with the sets of all suites, in their order.

    The same set in several suites gets the tasks of all. Different sets of one name get their suite's after it:
    `imagenet1k@clip_benchmark`. An option counts as given where it is not the default.

    Args:
        suites: the file of each, or what else says where it comes from, and its content.

    Raises:
        ConfigError: different sets of one name in one suite, suites that give an option different values.
    """
    sets: list[tuple[str, SetConfig]] = []
    for source, suite in suites:
        for each in suite.sets:
            same = next((i for i, (_, other) in enumerate(sets) if _but_tasks(other) == _but_tasks(each)), None)
            if same is None:
                sets.append((source, each))
            else:
                tasks = list(dict.fromkeys([*sets[same][1].tasks, *each.tasks]))
                sets[same] = (sets[same][0], dataclasses.replace(sets[same][1], task=tasks))
    return EvaluationConfig(**_options(suites), sets=_named(sets))


def _but_tasks(config: SetConfig) -> dict[str, Any]:
    return {**dataclasses.asdict(config), "task": None, "name": config.result_name}


def _named(sets: Sequence[tuple[str, SetConfig]]) -> list[SetConfig]:
    names = [each.result_name for _, each in sets]
    found: dict[str, SetConfig] = {}
    for (source, each), name in zip(sets, names, strict=True):
        own = name
        if names.count(name) > 1:
            own = f"{name}@{Path(source).stem.lstrip('-')}"
        if own in found:
            raise ConfigError(f"{source}: two evaluation sets are called {name!r}: give one of them a name")
        found[own] = dataclasses.replace(each, name=own)
    for own, name in zip(found, names, strict=True):
        if own != name:
            LOG.info("several suites have a set called %s: one is called %s here", name, own)
    return list(found.values())


def _options(suites: Sequence[tuple[str, EvaluationConfig]]) -> dict[str, Any]:
    """Of all suites, but for the sets."""
    default, options = EvaluationConfig(), {}
    for field in dataclasses.fields(EvaluationConfig):
        if field.name == "sets":
            continue
        usual = getattr(default, field.name)
        given = [(source, getattr(suite, field.name)) for source, suite in suites]
        given = [(source, value) for source, value in given if value != usual]
        for source, value in given:
            if value != given[0][1]:
                raise ConfigError(f"suites {given[0][0]} and {source} disagree on {field.name}: run them one at a time")
        options[field.name] = given[0][1] if given else usual
    return options
