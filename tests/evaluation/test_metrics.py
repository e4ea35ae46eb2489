"""Metrics by hand-made cases, and chance levels against simulation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.evaluation.classification import class_embeddings, zeroshot_metrics
from mmrep.evaluation.ranking import retrieval_metrics, top_hits


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def towards(choices: list[int], classes: int) -> Tensor:
    """Images that score the classes in the order choice, choice + 1, …, round the clock."""
    scores = torch.zeros(len(choices), classes)
    for row, choice in enumerate(choices):
        for place in range(classes):
            scores[row, (choice + place) % classes] = classes - place
    return scores


def test_zeroshot_by_hand() -> None:
    labels, choices = [0, 0, 0, 1, 2, 5], [0, 0, 1, 1, 3, 6]
    found = zeroshot_metrics(towards(choices, 7), torch.eye(7), labels)
    assert found.outcomes["label"].tolist() == labels
    # Label 0 is the last of seven from choice 1 on: not among the five nearest; 2 and 5 likewise come last.
    assert found.outcomes["position"].tolist() == [1, 1, 0, 1, 0, 0]
    assert found.metrics["acc1"] == 3 / 6
    assert found.metrics["acc5"] == 3 / 6
    # Classes 3, 4 and 6 do not occur: the mean is over 0 (2/3), 1 (1), 2 (0) and 5 (0).
    assert found.metrics["mean_per_class_recall"] == pytest.approx((2 / 3 + 1) / 4)


def test_acc5_counts_the_fifth_but_not_the_sixth() -> None:
    found = zeroshot_metrics(towards([0, 0, 0], 8), torch.eye(8), [3, 4, 5])
    assert found.outcomes["position"].tolist() == [4, 5, 0]
    assert found.metrics["acc5"] == pytest.approx(2 / 3)


def test_fewer_than_five_classes_have_no_acc5() -> None:
    found = zeroshot_metrics(towards([0, 1, 2, 2], 3), torch.eye(3), [0, 1, 2, 0])
    assert found.metrics == {"acc1": 0.75, "mean_per_class_recall": pytest.approx((0.5 + 1 + 1) / 3)}
    assert found.chance == {"acc1": 1 / 3, "mean_per_class_recall": 1 / 3}


def test_exactly_five_classes() -> None:
    found = zeroshot_metrics(towards([0, 1], 5), torch.eye(5), [4, 1])
    assert found.metrics["acc5"] == 1 and found.chance["acc5"] == 1


def test_chance_of_classification_by_simulation() -> None:
    classes, labels = 8, [0] * 20 + [1] * 3 + [7]
    found = [zeroshot_metrics(unit(24, 16, seed), unit(classes, 16, 10_000 + seed), labels) for seed in range(400)]
    for name, chance in found[0].chance.items():
        values = np.array([each.metrics[name] for each in found])
        assert abs(values.mean() - chance) < 4 * values.std() / len(values) ** 0.5, name


RAGGED = [1, 7, 2, 3, 1, 1, 12, 1, 4, 1, 2, 1]


def test_chance_of_retrieval_by_simulation() -> None:
    image_of_text = torch.tensor([i for i, count in enumerate(RAGGED) for _ in range(count)])
    found = [
        retrieval_metrics(unit(len(RAGGED), 32, seed), unit(len(image_of_text), 32, 10_000 + seed), image_of_text)
        for seed in range(500)
    ]
    for name, chance in found[0].chance.items():
        values = np.array([each.metrics[name] for each in found])
        assert abs(values.mean() - chance) < 4 * values.std() / len(values) ** 0.5, name


def test_chance_of_retrieval_by_hand() -> None:
    """Two images with 1 and 3 of 4 texts: one text drawn is an own one with 1/4 and 3/4."""
    found = retrieval_metrics(torch.eye(2), torch.eye(2)[[0, 1, 1, 1]], torch.tensor([0, 1, 1, 1]))
    assert found.chance["image_retrieval_recall@1"] == 0.5
    assert found.chance["text_retrieval_recall@1"] == pytest.approx((1 / 4 + 3 / 4) / 2)
    assert found.metrics["text_retrieval_recall@1"] == found.metrics["image_retrieval_recall@1"] == 1


def test_fewer_images_than_looked_at() -> None:
    images = torch.eye(4)
    found = retrieval_metrics(images, images[[1, 0, 2, 3]], torch.arange(4))
    assert found.metrics["image_retrieval_recall@1"] == 0.5
    for way in ("image", "text"):
        for k in (5, 10):
            assert found.metrics[f"{way}_retrieval_recall@{k}"] == 1
            assert found.chance[f"{way}_retrieval_recall@{k}"] == 1


def test_retrieval_outcomes_give_the_metrics() -> None:
    image_of_text = torch.tensor([i for i, count in enumerate(RAGGED) for _ in range(count)])
    images = unit(len(RAGGED), 8, 0)
    texts = F.normalize(images[image_of_text] + unit(len(image_of_text), 8, 1), dim=-1)
    found = retrieval_metrics(images, texts, image_of_text)
    assert found.outcomes["image_of_text"].tolist() == image_of_text.tolist()
    for way, count in (("image", len(image_of_text)), ("text", len(RAGGED))):
        position = found.outcomes[f"{way}_position"]
        assert len(position) == count
        for k in (1, 5, 10):
            share = ((position >= 1) & (position <= k)).mean()
            assert found.metrics[f"{way}_retrieval_recall@{k}"] == pytest.approx(share)


def test_top_hits_gives_the_first_right_place() -> None:
    gallery = torch.eye(6)
    queries = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]])
    owner = torch.tensor([9, 7, 8, 7, 8, 7])
    assert top_hits(queries, gallery, owner, torch.tensor([7, 8, 9]), 5).tolist() == [2, 2, 0]
    assert top_hits(queries, gallery, owner, torch.tensor([7, 8, 9]), 100).tolist() == [2, 2, 6]


def test_class_embeddings_are_means_over_templates() -> None:
    prompts = unit(6, 4, 0)
    expected = F.normalize(torch.stack([prompts[:3].mean(0), prompts[3:].mean(0)]), dim=-1)
    torch.testing.assert_close(class_embeddings(prompts, 2), expected)
