"""Text to image retrieval after SuperGlobal's reranking (arXiv 2308.06954): texts as queries, images as gallery."""

import logging

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.config.checks import require
from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.nearest import nearest
from mmrep.evaluation.scoring.rerank import ROUNDING, Reranked, rerank
from mmrep.evaluation.tasks.retrieval import flat_captions

LOG = logging.getLogger("mmrep")

RECALL_AT = (1, 5, 10)


def reranked(context: Context) -> list[Evaluation]:
    """`reranked_image_retrieval_recall@k` of a set of captions under every model: the task `rerank`.

    The share of captions whose image is among the first k after the first `instance.rerank_top` have been reordered.
    Beside it without reranking it is `image_retrieval_recall@k` of the task `retrieval`.

    Raises:
        ConfigError: the set has classes, not captions.
    """
    evalset, config = context.evalset, context.config.instance
    require(
        evalset.task == "retrieval",
        f"evaluation set {evalset.name}: task rerank wants captions; for images of one class use task instance",
    )
    texts, owner = flat_captions(context.texts)
    found = []
    for name, (model, images) in zip(
        context.models, zip(context.models.values(), context.images, strict=True), strict=True
    ):
        results = rerank_gallery(context.encode_texts(model, texts), images, config)
        evaluation = _evaluated(results, owner, len(images), config)
        if evaluation.pessimistic != evaluation.metrics:
            LOG.warning("evaluation set %s: task rerank: model %s: ties change the figures", evalset.name, name)
        found.append(evaluation)
    return found


def rerank_gallery(
    queries: Float[Tensor, "queries embed"], gallery: Float[Tensor, "gallery embed"], config: InstanceConfig
) -> Reranked:
    """The first `config.rerank_top` results of each query (texts or images) in their new order.

    Args:
        queries: of unit length.
        gallery: of unit length.
        config: how many are reordered, and how.
    """
    first = nearest(queries, gallery, min(config.rerank_top, len(gallery)))[1]
    return rerank(queries, gallery, first, config.neighbours, config.beta)


def _evaluated(results: Reranked, owner: Int64[Tensor, " texts"], images: int, config: InstanceConfig) -> Evaluation:
    own = results.positions == owner[:, None]
    there = own.any(1)
    position = torch.where(there, own.int().argmax(1) + 1, 0).numpy()
    score = results.scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    last = torch.where(
        there, (results.scores >= score - ROUNDING).sum(1), 0
    ).numpy()  # of all that tie with the right one
    metrics, pessimistic, chance = {}, {}, {}
    for k in RECALL_AT:
        name = f"reranked_image_retrieval_recall@{k}"
        metrics[name] = float(((position > 0) & (position <= k)).mean())
        pessimistic[name] = float(((last > 0) & (last <= k)).mean())
        chance[name] = min(1.0, k / images)
    outcomes = {"image_of_text": owner.numpy(), "reranked_image_position": position.astype(np.int32)}
    details = {"rerank": {"top": config.rerank_top, "neighbours": config.neighbours, "beta": config.beta}}
    return Evaluation(metrics, chance, outcomes, pessimistic=pessimistic, details=details)
