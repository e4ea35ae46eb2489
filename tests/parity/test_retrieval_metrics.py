"""Our metrics against torchmetrics and against CLIP_benchmark's recall, written out in float64."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.evaluation.scoring import ranks
from mmrep.evaluation.scoring.classification import zeroshot_metrics
from mmrep.evaluation.scoring.ranking import retrieval_metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_recall


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def clip_benchmark_recall(scores: Tensor, positive: Tensor, k: int) -> float:
    """Share of rows with a positive among the k best: the full matrix, one hot, as CLIP_benchmark 1.6 has it."""
    best = scores.topk(k, dim=1).indices
    true = (F.one_hot(best, scores.shape[1]) * positive[:, None].long()).sum((1, 2))
    return float((true / positive.sum(1) > 0).double().mean())


@pytest.mark.parametrize("captions", [[5] * 40, [1] * 40, [1, 7, 2, 3] * 10, [1] * 39 + [60]])
def test_recall_is_clip_benchmarks(captions: list[int]) -> None:
    image_of_text = torch.tensor([i for i, count in enumerate(captions) for _ in range(count)])
    images = unit(len(captions), 8, 0)
    noise = unit(len(image_of_text), 8, 1)
    texts = F.normalize(images[image_of_text] + 1.2 * noise, dim=-1)
    found = retrieval_metrics(images, texts, image_of_text).metrics
    scores = texts.double() @ images.double().T
    positive = image_of_text[:, None] == torch.arange(len(captions))
    expected = {}
    for k in (1, 5, 10):
        expected[f"image_retrieval_recall@{k}"] = clip_benchmark_recall(scores, positive, k)
        expected[f"text_retrieval_recall@{k}"] = clip_benchmark_recall(scores.T, positive.T, k)
    assert found == pytest.approx(expected, abs=1e-12)
    assert 0.1 < found["image_retrieval_recall@1"] < 0.9


def test_recall_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """More scores than are held at once, unevenly; captions in any order; ties."""
    monkeypatch.setattr(ranks, "BLOCK", 300 * 170)
    image_of_text = torch.randint(0, 300, (2500,), generator=torch.Generator().manual_seed(0))
    image_of_text[:300] = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    images = unit(300, 16, 0)
    images[100:130] = images[:30]
    texts = F.normalize(images[image_of_text] + 1.5 * unit(2500, 16, 1), dim=-1)
    texts[2000:2200] = texts[:200]
    found = retrieval_metrics(images, texts, image_of_text)
    scores = texts @ images.T
    positive = image_of_text[:, None] == torch.arange(300)
    for k in (1, 5, 10):
        for way, matrix, own in (("image", scores, positive), ("text", scores.T, positive.T)):
            name = f"{way}_retrieval_recall@{k}"
            assert found.metrics[name] == pytest.approx(clip_benchmark_recall(matrix, own, k), abs=1e-12)
            assert k > 1 or found.pessimistic[name] < found.metrics[name]


@pytest.mark.parametrize(("classes", "count"), [(6, 50), (10, 400), (100, 1500)])
def test_classification_is_torchmetrics(classes: int, count: int) -> None:
    random = torch.randint(0, classes, (count - classes,), generator=torch.Generator().manual_seed(2))
    labels = torch.cat([torch.arange(classes), random])
    centres = unit(classes, 12, 0)
    images = F.normalize(centres[labels] + unit(count, 12, 1), dim=-1)
    found = zeroshot_metrics(images, centres, labels.tolist()).metrics
    scores = images @ centres.T
    expected = {
        "acc1": multiclass_accuracy(scores, labels, classes, average="micro"),
        "acc5": multiclass_accuracy(scores, labels, classes, average="micro", top_k=5),
        "mean_per_class_recall": multiclass_recall(scores, labels, classes, average="macro"),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)
    assert 0.1 < found["acc1"] < 0.99
