"""Instance retrieval, image to image: by classes, or by a ground truth as that of Revisited Oxford and Paris."""

import logging
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.config.checks import require
from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.multiscale import multiscale_images
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.order import (
    QueryScores,
    average_precision,
    chance_precision,
    chance_recall,
    orders,
    worst,
)
from mmrep.evaluation.scoring.ranking import RECALL_AT
from mmrep.evaluation.scoring.revisited import score_queries
from mmrep.evaluation.sources.ground_truth import GroundTruth, InstanceRecords

LOG = logging.getLogger("mmrep")

MAP_AT = 10


def instance(context: Context) -> list[Evaluation]:
    """Return image to image retrieval metrics of every model, at the scales that the config asks for.

    - With a ground truth, its queries search its gallery: `instance_easy_map`, `instance_medium_map`,
      `instance_hard_map` and their `mp@k`.
    - With classes, every image searches all others for those of its class: `instance_recall@k`, `instance_map`,
      `instance_map@10`.
    - With `rerank`, the same after SuperGlobal's reranking, as `reranked_…`.

    Ties are in the order of the set. Outcomes: every figure of each query, and `pessimistic_…` with ties against it;
    NaN where a query has nothing to find.

    Raises:
        ConfigError: neither classes nor a ground truth; nothing that could be found.
    """
    config, records = context.config.instance, context.evalset.records
    where = f"evaluation set {context.evalset.name}: task instance"
    require(len(records) > 1, f"{where} needs two images or more, but the set has {len(records)}")
    truth, labels = None, None
    if isinstance(records, InstanceRecords):
        truth = records.truth
        require(
            len(records) == len(truth.gallery) + len(truth.queries),
            f"{where}: {len(records)} images of {len(truth.gallery)} + {len(truth.queries)}; it needs all of them",
        )
    else:
        require(bool(context.evalset.classnames), f"{where} needs classes or `ground_truth`, but the set has captions")
        require(not context.evalset.multilabel, f"{where} needs one class an image, but the set has several")
        labels = torch.tensor(context.labels)
    found = []
    for name, images in zip(context.models, multiscale_images(context, config.scales), strict=True):
        evaluation = _evaluated(images, truth, labels, config, where)
        changed = [metric for metric, value in evaluation.pessimistic.items() if value != evaluation.metrics[metric]]
        if changed:
            LOG.warning("%s: model %s: ties change %s; see the column of worst ties", where, name, ", ".join(changed))
        found.append(evaluation)
    for figure, count in found[0].details["queries_left_out"].items():
        if count:
            LOG.warning("%s: %s: %d queries have nothing to find and are left out", where, figure, count)
    return found


def _evaluated(
    images: Float[Tensor, "images embed"],
    truth: GroundTruth | None,
    labels: Int64[Tensor, " images"] | None,
    config: InstanceConfig,
    where: str,
) -> Evaluation:
    scores = QueryScores({}, {}, {})
    for prefix, reranking in (("", None), ("reranked_", config))[: 2 if config.rerank else 1]:
        if truth is not None:
            gallery = len(truth.gallery)
            part = score_queries(images[gallery:], images[:gallery], truth, reranking)
        else:
            assert labels is not None, "a set without ground truth has labels"
            part = _by_class(images, labels, reranking)
        for whole, new in zip(scores, part, strict=True):
            whole |= {f"{prefix}instance_{name}": each for name, each in new.items()}
    asked = [name for name, each in scores.values.items() if not np.isnan(each).all()]
    require(bool(asked), f"{where}: no query has a right image, so there is nothing to find")
    metrics, pessimistic, chance = ({name: float(np.nanmean(part[name])) for name in asked} for part in scores)
    outcomes = scores.values | {f"pessimistic_{name}": each for name, each in scores.pessimistic.items()}
    if truth is not None:
        outcomes["query_keys"] = np.array([query.name for query in truth.queries])
    return Evaluation(metrics, chance, outcomes, pessimistic=pessimistic, details=_details(scores, config))


def _by_class(
    images: Float[Tensor, "images embed"], labels: Int64[Tensor, " images"], reranking: InstanceConfig | None
) -> QueryScores:
    """Return `recall@k`, `map` and `map@10` of every image against all others.

    Average precision at k divides by the smaller of k and the number of right images (Weyand et al., arXiv 2004.01804,
    eq. 1).
    """
    relevant = torch.bincount(labels)[labels] - 1
    names = (*(f"recall@{k}" for k in RECALL_AT), "map", f"map@{MAP_AT}")
    scores = QueryScores.empty(names, len(images))
    for rows, order in orders(images, images, own=True, reranking=reranking):
        own = slice(rows.start, rows.stop)
        right = labels[order.positions] == labels[own, None]
        whole = relevant[own].clamp(min=1).double()
        for arrays, each in zip(scores[:2], (right, worst(right, order.tied)), strict=True):
            for k in RECALL_AT:
                arrays[f"recall@{k}"][own] = each[:, :k].any(1).numpy()
            arrays["map"][own] = average_precision(each, whole).numpy()
            arrays[f"map@{MAP_AT}"][own] = average_precision(each[:, :MAP_AT], whole.clamp(max=MAP_AT)).numpy()
    counts, others = relevant.clamp(min=1).numpy(), np.full(len(images), len(images) - 1)
    for k in RECALL_AT:
        scores.chance[f"recall@{k}"][:] = chance_recall(counts, others, k)
    scores.chance["map"][:] = chance_precision(counts, others)
    scores.chance[f"map@{MAP_AT}"][:] = chance_precision(counts, others, MAP_AT)
    alone = relevant.numpy() == 0
    for part in scores:
        for values in part.values():
            values[alone] = np.nan
    return scores


def _details(scores: QueryScores, config: InstanceConfig) -> dict[str, Any]:
    maps = {name: each for name, each in scores.values.items() if name.endswith("_map") and "reranked" not in name}
    details: dict[str, Any] = {
        "scales": list(config.scales),
        "queries": len(next(iter(maps.values()))),
        "queries_left_out": {name: int(np.isnan(each).sum()) for name, each in maps.items()},
    }
    if config.rerank:
        details["rerank"] = {"top": config.rerank_top, "neighbours": config.neighbours, "beta": config.beta}
    return details
