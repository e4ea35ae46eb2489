"""Text to image retrieval after reranking."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.scoring.rerank import rerank
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.suite import evaluate
from mmrep.evaluation.tasks.reranked import rerank_gallery, reranked
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=6, workers=0, instance=InstanceConfig(rerank_top=8, neighbours=3))
NAMES = [f"reranked_image_retrieval_recall@{k}" for k in (1, 5, 10)]


def test_of_a_set_of_captions(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    models = {"avg": tiny("avg", seed=1), "cls": tiny("cls", seed=2)}
    evalset = open_set(SetConfig(f"{colour_set}/retrieval"))._replace(tasks=("rerank",))
    results = evaluate(models, [evalset], CONFIG)
    for (name, model), result, images in zip(
        models.items(), results, Context(models, evalset, CONFIG).images, strict=True
    ):
        found = result.evaluation
        texts = [text for i in range(16) for text in evalset.records.texts(i)]
        queries = Context(models, evalset, CONFIG).encode_texts(model.eval(), texts)
        order = rerank(queries, images, (queries @ images.T).topk(8).indices, 3).positions
        places = [row.index(i // 2) + 1 if i // 2 in row else 0 for i, row in enumerate(order.tolist())]
        assert found.outcomes["reranked_image_position"].tolist() == places, name
        assert list(found.metrics) == list(found.chance) == list(found.pessimistic) == NAMES
        assert found.metrics[NAMES[1]] == sum(1 <= place <= 5 for place in places) / 32
        assert found.chance[NAMES[1]] == 5 / 16


def test_at_most_the_gallery_is_reordered() -> None:
    queries, gallery = (
        F.normalize(torch.randn(n, 6, generator=torch.Generator().manual_seed(n)), dim=1) for n in (9, 20)
    )
    assert rerank_gallery(queries, gallery, InstanceConfig()).positions.shape == (9, 20)


def test_ties_are_reported(
    tiny: Callable[..., DualEncoder], colour_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("avg", seed=1)
    evalset = open_set(SetConfig(f"{colour_set}/retrieval"))
    context = Context({"avg": model}, evalset, CONFIG)
    context.images = [context.images[0][:1].expand(16, -1).contiguous()]
    with caplog.at_level(logging.WARNING, "mmrep"):
        (found,) = reranked(context)
    assert found.metrics[NAMES[2]] == 0.5 and found.pessimistic[NAMES[1]] == 0
    assert "task rerank: model avg: ties change the figures" in caplog.text


def test_classes_are_refused(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    evalset = open_set(SetConfig(str(colour_set), name="colours"))
    with pytest.raises(ConfigError, match="evaluation set colours: task rerank wants captions"):
        reranked(Context({"avg": tiny("avg")}, evalset, CONFIG))
