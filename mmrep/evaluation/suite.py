"""Many sets, many models: results as JSON, per-sample outcomes as npz, one table."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmrep.config.checks import MmrepError, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.evaluation.embed import embed_set
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.retrieval import retrieval
from mmrep.evaluation.sets import EvalSet
from mmrep.evaluation.tables import align
from mmrep.evaluation.zeroshot import zeroshot
from mmrep.model.dual_encoder import DualEncoder

SCHEMA = 1


class Result(NamedTuple):
    """One model on one set."""

    model: str
    evalset: EvalSet
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        """As in results.json."""
        return {
            "model": self.model,
            "dataset": self.evalset.name,
            "task": self.evalset.task,
            "n": len(self.evalset.samples),
            "metrics": self.evaluation.metrics,
            "chance": self.evaluation.chance,
        }


def evaluate(
    models: dict[str, DualEncoder], sets: Sequence[EvalSet], config: EvaluationConfig, quiet: bool = True
) -> list[Result]:
    """Every model on every set; the images of a set are decoded once.

    Args:
        models: by the name they have in the results.
        sets: what to evaluate on.
        config: batch sizes, workers.
        quiet: show no progress bars.

    Raises:
        ConfigError: two sets of one name.
        DataError: a sample that can't be read.
        MmrepError: embeddings that are not finite.
    """
    for name, count in Counter(evalset.name for evalset in sets).items():
        require(count == 1, f"evaluation: {count} sets are named {name!r}; give each a name of its own")
    results = []
    with _eval_mode(models.values()):
        for evalset in sets:
            embedded = embed_set(list(models.values()), evalset, config, quiet)
            for (name, model), images in zip(models.items(), embedded.images, strict=True):
                if not images.isfinite().all():
                    raise MmrepError(
                        f"model {name}: its embeddings on {evalset.name} are not finite; did training diverge?"
                    )
                if evalset.task == "zeroshot":
                    found = zeroshot(model, evalset, images, embedded.labels, config.text_batch_size)
                else:
                    found = retrieval(model, images, embedded.texts, config.text_batch_size)
                results.append(Result(name, evalset, found))
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

    Args:
        results: of `evaluate`.
        path: the JSON file; its folder is made.
        about: further top-level fields (versions, digests).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for result in results:
        place = path.parent / "outcomes" / result.model.replace("/", "_") / f"{result.evalset.name}.npz"
        place.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"keys": np.array(result.evalset.keys()), **result.evaluation.outcomes}
        np.savez_compressed(place, **arrays)
    content = {"schema": SCHEMA, "results": [result.to_dict() for result in results], **(about or {})}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def table(results: Sequence[Result]) -> str:
    """Results as lines of text: percentages, chance in brackets."""
    rows = [("model", "dataset", "n", "metric", "%", "chance %")]
    for result in results:
        for metric, value in result.evaluation.metrics.items():
            chance = result.evaluation.chance[metric]
            n = str(len(result.evalset.samples))
            rows.append((result.model, result.evalset.name, n, metric, f"{100 * value:.2f}", f"{100 * chance:.2f}"))
    return align(rows)
