"""Many sets, many models: results as JSON, per-sample outcomes as npz, one table."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrep.config.checks import require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet
from mmrep.evaluation.tables import align
from mmrep.evaluation.tasks import TASK_FUNCTIONS
from mmrep.model.dual_encoder import DualEncoder

SCHEMA = 1


class Result(NamedTuple):
    """One model at one task of one set."""

    model: str
    evalset: EvalSet
    task: str
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """As in results.json."""
        found = self.evaluation
        content = {
            "model": self.model,
            "dataset": self.evalset.name,
            "task": self.task,
            "n": len(self.evalset.records),
            "metrics": {**found.metrics, **found.further},
            "chance": found.chance,
        }
        return content | {name: dict(part) for name in ("pessimistic", "details") if (part := getattr(found, name))}


def evaluate(
    models: dict[str, DualEncoder], sets: Sequence[EvalSet], config: EvaluationConfig, quiet: bool = True
) -> list[Result]:
    """Every model at every task of every set; the images of a set are decoded once.

    All processes call it, and all get the same results.

    Args:
        models: by the name they have in the results.
        sets: what to evaluate on.
        config: batch sizes, workers, tasks' options.
        quiet: show no progress bars.

    Raises:
        ConfigError: two sets of one name, a task that does not fit its set.
        DataError: a sample that can't be read.
        MmrepError: embeddings that are not finite.
    """
    for name, count in Counter(evalset.name for evalset in sets).items():
        require(count == 1, f"evaluation: {count} sets are named {name!r}; give each a name of its own")
    results = []
    with _eval_mode(models.values()):
        for evalset in sets:
            context = Context(models, evalset, config, quiet)
            for task in evalset.tasks or (evalset.task,):
                found = TASK_FUNCTIONS[task](context)
                results += [Result(name, evalset, task, each) for name, each in zip(models, found, strict=True)]
    return results


@contextmanager
def _eval_mode(models: Iterable[DualEncoder]) -> Iterator[None]:
    """Evaluation mode within; every module as it was afterwards."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def write_results(results: Sequence[Result], path: Path, about: dict[str, Any] | None = None) -> None:
    """Writes `path` (JSON) and, beside it, outcomes/MODEL/DATASET.npz with what happened to every sample.

    Tasks that are not a set's own, and tables, have their name after the set's.

    Args:
        results: of `evaluate`.
        path: the JSON file; its folder is made.
        about: further top-level fields (versions, digests).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for result in results:
        folder = path.parent / "outcomes" / result.model.replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        name = result.evalset.name + ("" if result.task == result.evalset.task else f".{result.task}")
        arrays: dict[str, Any] = {"keys": np.array(result.evalset.keys()), **result.evaluation.outcomes}
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        for table_name, rows in result.evaluation.tables.items():
            with (folder / f"{name}.{table_name}.csv").open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
    content = {"schema": SCHEMA, "results": [result.to_dict() for result in results], **(about or {})}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def table(results: Sequence[Result]) -> str:
    """Results as lines of text: shares as percentages, ranks as they are, beside them chance and what ties may cost."""
    rows = [["model", "dataset", "task", "n", "metric", "value", "chance", "worst ties"]]
    for result in results:
        found = result.evaluation
        about = [result.model, result.evalset.name, result.task, str(len(result.evalset.records))]
        for metric, value in {**found.metrics, **found.further}.items():
            numbers = (value, found.chance.get(metric), found.pessimistic.get(metric))
            rows.append([*about, metric, *(_cell(metric, number) for number in numbers)])
    return align(rows)


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if metric.endswith("_rank") else f"{100 * value:.2f}"
