"""Image-text retrieval with several captions an image: both ways, and text to image after reranking."""

import logging

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.config.checks import require
from mmrep.config.instance import InstanceConfig
from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.nearest import nearest
from mmrep.evaluation.scoring.ranking import RECALL_AT, retrieval_metrics
from mmrep.evaluation.scoring.ranks import Ranks, own_ranks
from mmrep.evaluation.scoring.rerank import ROUNDING, Reranked, rerank


def retrieval(context: Context) -> list[Evaluation]:
    """Return the metrics of retrieval between the images of a set and their captions, both ways, for every model.

    Raises:
        DataError: an image without caption.
    """
    for position, own in enumerate(context.texts):
        if not own:
            raise DataError(
                f"evaluation set {context.evalset.name}: image {context.evalset.records.key(position)} has no caption; "
                "retrieval needs one for every image"
            )
    texts, image_of_text = flat_captions(context.texts)
    return [
        retrieval_metrics(images, context.encode_texts(model, texts), image_of_text, context.evalset.name)
        for model, images in zip(context.models.values(), context.images, strict=True)
    ]


def flat_captions(texts: list[list[str]]) -> tuple[list[str], Int64[Tensor, " texts"]]:
    """Return all captions of a set and the image that each belongs to."""
    flat = [text for own in texts for text in own]
    return flat, torch.tensor([image for image, own in enumerate(texts) for _ in own])


LOG = logging.getLogger("mmrep")


def reranked(context: Context) -> list[Evaluation]:
    """Return `reranked_image_retrieval_recall@k` of every model: the task `rerank` (SuperGlobal, arXiv 2308.06954).

    This is the share of captions whose image is among the first k after the first `instance.rerank_top` images have
    been reordered; the others stay behind them. Without reranking it is `image_retrieval_recall@k` of the task
    `retrieval`.
    Outcomes: `image_of_text`, `reranked_image_position` (1: first), `reranked_image_pessimistic_position`.

    Raises:
        ConfigError: the set has classes, not captions.
    """
    evalset, config = context.evalset, context.config.instance
    require(
        evalset.task == "retrieval",
        f"evaluation set {evalset.name}: task rerank needs captions; for images of one class use task instance",
    )
    texts, owner = flat_captions(context.texts)
    found = []
    for (name, model), images in zip(context.models.items(), context.images, strict=True):
        queries = context.encode_texts(model, texts)
        results = rerank_gallery(queries, images, config)
        before = own_ranks(queries, images, np.arange(len(queries)), owner.numpy(), (1,))
        evaluation = _evaluated(results, before, owner, len(images), config)
        if evaluation.pessimistic != evaluation.metrics:
            LOG.warning("evaluation set %s: task rerank: model %s: ties change the figures", evalset.name, name)
        found.append(evaluation)
    return found


def rerank_gallery(
    queries: Float[Tensor, "queries embed"], gallery: Float[Tensor, "gallery embed"], config: InstanceConfig
) -> Reranked:
    """Return the first `config.rerank_top` results of each query in their new order.

    Args:
        queries: embeddings of unit length, of texts or images.
        gallery: embeddings of unit length.
        config: options of the reranking.
    """
    first = nearest(queries, gallery, min(config.rerank_top, len(gallery)))[1]
    return rerank(queries, gallery, first, config.neighbours, config.beta)


def _evaluated(
    results: Reranked, before: Ranks, owner: Int64[Tensor, " texts"], images: int, config: InstanceConfig
) -> Evaluation:
    """Return recall of positions: among the first results by the new order, behind them by the old one.

    An image that ties with others across the end of the first results may be the last of them.
    """
    own = results.positions == owner[:, None]
    score = results.scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
    behind = (results.scores >= score - ROUNDING).sum(1)  # position behind all that tie with the right image
    there, top = own.any(1), results.positions.shape[1]
    place, worst = (torch.from_numpy(each[:, 0]) for each in before[:2])
    position = torch.where(there, own.int().argmax(1) + 1, place.clamp(min=top + 1))
    last = torch.where(there & (worst <= top), behind, worst.clamp(min=position))
    outcomes = {"image_of_text": owner.numpy()}
    figures = []
    for name, each in (("position", position), ("pessimistic_position", last)):
        outcomes[f"reranked_image_{name}"] = each.numpy().astype(np.int32)
        figures.append({f"reranked_image_retrieval_recall@{k}": float((each <= k).double().mean()) for k in RECALL_AT})
    chance = {name: min(1.0, k / images) for name, k in zip(figures[0], RECALL_AT, strict=True)}
    details = {"rerank": {"top": config.rerank_top, "neighbours": config.neighbours, "beta": config.beta}}
    return Evaluation(figures[0], chance, outcomes, pessimistic=figures[1], details=details)
