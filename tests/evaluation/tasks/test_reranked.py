"""Text to image retrieval after reranking."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.rerank import rerank
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.suite import evaluate
from mmrep.evaluation.tasks.retrieval import rerank_gallery, reranked
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
        plain = (queries @ images.T).argsort(dim=1, descending=True)
        order = torch.cat([order, plain[:, 8:]], dim=1)
        places = [row.index(i // 2) + 1 for i, row in enumerate(order.tolist())]
        assert max(places) > 8 and found.outcomes["reranked_image_position"].tolist() == places, name
        assert list(found.metrics) == list(found.chance) == list(found.pessimistic) == NAMES
        for figure, k in zip(NAMES, (1, 5, 10), strict=True):
            assert found.metrics[figure] == np.mean([place <= k for place in places])
            worst = found.outcomes["reranked_image_pessimistic_position"]
            assert found.pessimistic[figure] == (worst <= k).mean() <= found.metrics[figure]
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
    assert found.metrics[NAMES[2]] == 10 / 16 and set(found.pessimistic.values()) == {0}
    assert found.outcomes["reranked_image_pessimistic_position"].tolist() == [16] * 32
    assert "task rerank: model avg: ties change the figures" in caplog.text


def scored(queries: torch.Tensor, gallery: torch.Tensor, owner: list[int], top: int) -> Evaluation:
    """The task on embeddings that are given."""

    class Given(Context):
        def __init__(self) -> None:
            self.models = {"given": None}  # type: ignore[dict-item]  # no model is run
            self.config = EvaluationConfig(instance=InstanceConfig(rerank_top=top))
            self.evalset = EvalSet("given", "retrieval", [], [], [])  # type: ignore[arg-type]  # no record is read
            self.images = [gallery]
            self.texts = [["x"] * owner.count(image) for image in range(len(gallery))]

        def encode_texts(self, model: Any, texts: list[str]) -> torch.Tensor:
            return queries

    return reranked(Given())[0]


@pytest.mark.parametrize(("own", "worst"), [(0, 4), (3, 3), (4, 14), (5, 14), (13, 14), (14, 15), (17, 19)])
def test_ties_over_the_end_of_the_first(own: int, worst: int) -> None:
    """Twenty images by falling similarity, of which 1 to 3, 4 to 13, and 17 and 18 are equal; five are reordered."""
    angles = torch.tensor([0.0, *[0.1] * 3, *[0.2] * 10, 0.3, 0.4, 0.5, *[0.6] * 2, 0.7])
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = scored(torch.tensor([[1.0, 0]]), gallery, [own], 5)
    position = found.outcomes["reranked_image_position"][0]
    assert (position <= 5) == (own < 5) and (own < 5 or position == own + 1)
    assert found.outcomes["reranked_image_pessimistic_position"].tolist() == [worst]
    for figure, k in zip(NAMES, (1, 5, 10), strict=True):
        assert found.metrics[figure] == (position <= k) and found.pessimistic[figure] == (worst <= k)


def test_classes_are_refused(tiny: Callable[..., DualEncoder], colour_set: Path) -> None:
    evalset = open_set(SetConfig(str(colour_set), name="colours"))
    with pytest.raises(ConfigError, match="evaluation set colours: task rerank needs captions"):
        reranked(Context({"avg": tiny("avg")}, evalset, CONFIG))
