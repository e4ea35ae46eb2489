"""Every task that a config may name has a function."""

from mmrep.config.evaluation import TASKS
from mmrep.evaluation.tasks.registry import TASK_FUNCTIONS


def test_tasks_are_those_of_the_config() -> None:
    assert set(TASK_FUNCTIONS) == set(TASKS)
