"""The task functions by name."""

from mmrep.evaluation.context import TaskFunction
from mmrep.evaluation.tasks.corruption import corruption
from mmrep.evaluation.tasks.finetune import finetune
from mmrep.evaluation.tasks.instance import instance
from mmrep.evaluation.tasks.knn import knn
from mmrep.evaluation.tasks.occlusion import occlusion
from mmrep.evaluation.tasks.pairs import pairs
from mmrep.evaluation.tasks.probe import linear_probe
from mmrep.evaluation.tasks.reranked import reranked
from mmrep.evaluation.tasks.retrieval import retrieval
from mmrep.evaluation.tasks.zeroshot import zeroshot

TASK_FUNCTIONS: dict[str, TaskFunction] = {
    "zeroshot": zeroshot,
    "retrieval": retrieval,
    "linear_probe": linear_probe,
    "knn": knn,
    "instance": instance,
    "rerank": reranked,
    "corruption": corruption,
    "finetune": finetune,
    "occlusion": occlusion,
    "pairs": pairs,
}
"""A function for each of `mmrep.config.evaluation.TASKS`; what `auto` means for a set, `open_set` finds out."""
