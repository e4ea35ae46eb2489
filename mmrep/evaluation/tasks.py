"""The tasks by name."""

from mmrep.evaluation.context import TaskFunction
from mmrep.evaluation.retrieval import retrieval
from mmrep.evaluation.zeroshot import zeroshot

TASK_FUNCTIONS: dict[str, TaskFunction] = {"zeroshot": zeroshot, "retrieval": retrieval}
"""What `SetConfig.task` may name."""
