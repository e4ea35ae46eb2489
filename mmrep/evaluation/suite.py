"""Evaluation of many models on many sets: results as JSON, per-sample outcomes as npz, one table."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.context import Context, TaskFunction
from mmrep.evaluation.embedding.cache import EmbeddingCache
from mmrep.evaluation.metrics import Evaluation, is_main, number
from mmrep.evaluation.outcome_names import check_model_names, check_set_names, file_stem, model_folder
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.tasks.corruption import corruption
from mmrep.evaluation.tasks.finetune import finetune
from mmrep.evaluation.tasks.instance import instance
from mmrep.evaluation.tasks.knn import knn
from mmrep.evaluation.tasks.occlusion import occlusion
from mmrep.evaluation.tasks.pairs import pairs
from mmrep.evaluation.tasks.probe import linear_probe
from mmrep.evaluation.tasks.retrieval import reranked, retrieval
from mmrep.evaluation.tasks.zeroshot import zeroshot
from mmrep.files import whole_file, write_json
from mmrep.markup import align, shortened
from mmrep.model.dual_encoder import DualEncoder

SCHEMA = 1
_NONE = "–"
_LEAST_NAME = 14
"""Characters of a model's name that a table leaves at least."""

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
"""A function for each of `mmrep.config.evaluation.TASKS`; `open_set` resolves `auto`."""


class Result(NamedTuple):
    """One model at one task of one set."""

    model: str
    evalset: EvalSet
    task: str
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """Return the result as results.json has it."""
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
    """Evaluate every model at every task of every set; the images of a set are decoded once.

    Call it on every process; all return the same results.

    Args:
        models: models by their names in the results.
        sets: the sets to evaluate on.
        config: batch sizes, workers, tasks' options.
        quiet: show no progress bars.

    Raises:
        ConfigError: two sets, or two models, that would write to one file; a task that does not fit its set.
        DataError: a sample that can't be read.
        MmrepError: embeddings that are not finite.
    """
    check_set_names([(evalset.name, evalset.tasks) for evalset in sets])
    cache = EmbeddingCache() if config.cache else None
    return [result for found in evaluate_each(models, sets, config, quiet, cache) for result in found]


def evaluate_each(
    models: dict[str, DualEncoder],
    sets: Iterable[EvalSet | SetConfig],
    config: EvaluationConfig,
    quiet: bool = True,
    cache: EmbeddingCache | None = None,
) -> Iterator[list[Result]]:
    """Evaluate set after set, so that callers can save the results of a set before the next one.

    Args:
        models: see `evaluate`.
        sets: sets, or configs of sets, which are opened when it is their turn. Their names must differ.
        config: see `evaluate`.
        quiet: show no progress bars.
        cache: where embeddings are stored and looked up.

    Yields:
        The results of a set: task after task, and within each model after model.
    """
    check_model_names(models)
    for each in sets:
        evalset = open_set(each) if isinstance(each, SetConfig) else each
        context = Context(models, evalset, config, quiet, cache)
        results = []
        with _eval_mode(models.values()):
            for task in dict.fromkeys(evalset.tasks or (evalset.task,)):
                found = TASK_FUNCTIONS[task](context)
                results += [Result(name, evalset, task, one) for name, one in zip(models, found, strict=True)]
        yield results


@contextmanager
def _eval_mode(models: Iterable[DualEncoder]) -> Iterator[None]:
    """Set evaluation mode in the context, and restore every module's mode after it."""
    before = [(module, module.training) for model in models for module in model.modules()]
    for module, _ in before:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def write_results(results: Sequence[Result], path: Path, about: dict[str, Any] | None = None) -> None:
    """Write `path` (JSON) and, in its folder, outcomes/MODEL/DATASET.npz with the outcome of every sample.

    File names of tables, and of tasks that are not a set's own, have the table's or the task's name after the set's.

    Args:
        results: results of `evaluate`.
        path: the JSON file; its folder is created.
        about: further top-level fields (versions, digests).
    """
    write_outcomes(results, path.parent)
    write_figures(results, path, about)


def write_outcomes(results: Sequence[Result], folder: Path) -> None:
    """Write FOLDER/outcomes/MODEL/DATASET.npz and the tables of results."""
    for result in results:
        place = folder / "outcomes" / model_folder(result.model)
        name = file_stem(result.evalset.name, result.evalset.task, result.task)
        arrays: dict[str, Any] = {"keys": np.array(result.evalset.keys()), **result.evaluation.outcomes}
        with whole_file(place / f"{name}.npz") as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)
        for table_name, rows in result.evaluation.tables.items():
            with (
                whole_file(place / f"{name}.{table_name}.csv") as part,
                part.open("w", encoding="utf-8", newline="") as to,
            ):
                csv.writer(to).writerows(rows)


def write_figures(results: Sequence[Result], path: Path, about: dict[str, Any] | None = None) -> None:
    """Write the JSON file alone."""
    content = {"schema": SCHEMA, "results": [result.to_dict() for result in results], **(about or {})}
    write_json(path, content)


def results_table(results: Sequence[Result], width: int | None = None, most: int | None = None) -> str:
    """Return results as a table for each task of each set, with a column for each model.

    Shares are percentages, ranks are as they are. A figure that would be another one if all ties were decided against
    the model has a row of its own.

    Args:
        results: what `evaluate` found.
        width: columns of the terminal. Long names are shortened, and models that do not fit follow in further tables;
            None does neither.
        most: number of rows to show, the main figures of all tasks first; None shows all.
    """
    tasks: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        tasks.setdefault((result.evalset.name, result.task), []).append(result)
    rows = [(key, *row) for key, found in tasks.items() for row in _rows(found)]
    kept = sorted(range(len(rows)), key=lambda number: rows[number][1])[:most]
    names = max((len(rows[number][2][0]) for number in kept), default=0)
    parts = []
    for (dataset, task), found in tasks.items():
        shown = [rows[number] for number in sorted(kept) if rows[number][0] == (dataset, task)]
        if shown:
            parts.append(f"{dataset}: {task}, {len(found[0].evalset.records):,} samples")
            cells = [[row[0].ljust(names), *row[1:]] for _, _, row in shown]
            parts += _tables(cells, list(dict.fromkeys(result.model for result in found)), width)
    left_out = len(rows) - len(kept)
    return "\n".join(parts) + (f"\n… and {left_out} more figures in results.json" if left_out else "")


def _tables(rows: Sequence[Sequence[str]], models: Sequence[str], width: int | None) -> list[str]:
    """Return rows of metric, chance and a cell for each model as tables of at most `width` columns."""
    fitting = len(models)
    if width is not None:
        widest = min(max(map(len, models)), _LEAST_NAME)
        fitting = max(1, (width - len(rows[0][0]) - 8) // (max(widest, 6) + 2))
    tables = []
    for start in range(0, len(models), fitting):
        part = slice(start, start + fitting)
        cells = [["metric", "chance", *models[part]], *([*row[:2], *row[2:][part]] for row in rows)]
        tables.append(align(cells if width is None else shortened(cells, width, models[part])))
    return tables


def _rows(found: Sequence[Result]) -> list[tuple[tuple[int, int], list[str]]]:
    """Return the rows of a task: a key to sort by importance, and metric, chance and a cell for each model."""
    rows: list[tuple[tuple[int, int], list[str]]] = []
    for place, metric in enumerate(dict.fromkeys(name for result in found for name in _figures(result))):
        values = [_figures(result).get(metric) for result in found]
        worst = [result.evaluation.pessimistic.get(metric, value) for result, value in zip(found, values, strict=True)]
        cells, pessimistic = (
            [_NONE if each is None else number(metric, each) for each in row] for row in (values, worst)
        )
        chance = found[0].evaluation.chance.get(metric)
        rows.append(
            ((not is_main(metric), place), [metric, _NONE if chance is None else number(metric, chance), *cells])
        )
        if pessimistic != cells:
            rows.append(((2, place), [f"{metric}, worst ties", "", *pessimistic]))
    return rows


def _figures(result: Result) -> dict[str, float]:
    return {**result.evaluation.metrics, **result.evaluation.further}
