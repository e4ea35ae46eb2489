"""Classification metrics by hand-made cases, ties against CLIP_benchmark's steps, chance levels against simulation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import (
    class_embeddings,
    class_tables,
    classification_metrics,
    first_twins,
    zeroshot_metrics,
)


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def towards(choices: list[int], classes: int) -> Tensor:
    """Images that score the classes in the order choice, choice + 1, …, round the clock."""
    scores = torch.zeros(len(choices), classes)
    for row, choice in enumerate(choices):
        for place in range(classes):
            scores[row, (choice + place) % classes] = classes - place
    return scores


def tied(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor, list[int]]:
    """Small whole numbers, so that scores are exact and many of them tie."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(-2, 3, (images, 3), generator=generator).float()
    names = torch.randint(-2, 3, (classes, 3), generator=generator).float()
    return found, names, torch.randint(0, classes, (images,), generator=generator).tolist()


def test_zeroshot_by_hand() -> None:
    labels, choices = [0, 0, 0, 1, 2, 5], [0, 0, 1, 1, 3, 6]
    found = zeroshot_metrics(towards(choices, 7), torch.eye(7), labels)
    assert found.outcomes["label"].tolist() == labels
    assert found.outcomes["predicted"].tolist() == choices
    # Label 0 is the last of seven from choice 1 on: not among the five nearest; 2 and 5 likewise come last.
    assert found.outcomes["position"].tolist() == [1, 1, 7, 1, 7, 7]
    assert found.metrics["acc1"] == 3 / 6
    assert found.metrics["acc5"] == 3 / 6
    # Classes 3, 4 and 6 do not occur: the mean is over 0 (2/3), 1 (1), 2 (0) and 5 (0).
    assert found.metrics["mean_per_class_recall"] == pytest.approx((2 / 3 + 1) / 4)
    assert found.pessimistic == found.metrics


def test_acc5_counts_the_fifth_but_not_the_sixth() -> None:
    found = zeroshot_metrics(towards([0, 0, 0], 8), torch.eye(8), [3, 4, 5])
    assert found.outcomes["position"].tolist() == [4, 5, 6]
    assert found.metrics["acc5"] == pytest.approx(2 / 3)


def test_fewer_than_five_classes_have_no_acc5() -> None:
    found = zeroshot_metrics(towards([0, 1, 2, 2], 3), torch.eye(3), [0, 1, 2, 0])
    assert found.metrics == {"acc1": 0.75, "mean_per_class_recall": pytest.approx((0.5 + 1 + 1) / 3)}
    assert found.chance == {"acc1": 1 / 3, "mean_per_class_recall": 1 / 3}


def test_exactly_five_classes() -> None:
    found = zeroshot_metrics(towards([0, 1], 5), torch.eye(5), [4, 1])
    assert found.metrics["acc5"] == 1 and found.chance["acc5"] == 1


@pytest.mark.parametrize(("images", "classes"), [(500, 40), (1500, 9), (300, 3)])
def test_ties_are_clip_benchmarks(images: int, classes: int) -> None:
    """acc1 and acc5 by topk (of 1 below five classes), recall by argmax: they differ where scores tie."""
    embeddings, names, labels = tied(images, classes, classes)
    found = zeroshot_metrics(embeddings, names, labels)
    logits, wanted = 100 * embeddings @ names.T, torch.tensor(labels)
    right = logits.topk(5 if classes >= 5 else 1, 1, True, True).indices == wanted[:, None]
    predicted = logits.argmax(1)
    expected = {"acc1": float(right[:, 0].double().mean())}
    shares = [float((predicted[wanted == label] == label).double().mean()) for label in wanted.unique()]
    expected["mean_per_class_recall"] = float(np.mean(shares))
    if classes >= 5:
        expected["acc5"] = float(right.any(1).double().mean())
    assert found.metrics == pytest.approx(expected, abs=1e-12)
    behind = (logits >= logits.gather(1, wanted[:, None])).sum(1)
    assert found.outcomes["pessimistic_position"].tolist() == behind.tolist()
    assert all(found.pessimistic[name] < value for name, value in found.metrics.items())


def test_equal_classes_tie_whatever_the_matrix_product_rounds() -> None:
    """1,025 images: the last chunk has one row, where a product's columns may differ in the last bit."""
    names = unit(1000, 128, 0)
    names[836] = names[744]
    images, labels = names[[744] * 1025], [744, 836] * 512 + [836]
    found = zeroshot_metrics(images, names, labels)
    assert set(found.outcomes["position"].tolist()) == {1, 2}
    assert set(found.outcomes["pessimistic_position"].tolist()) == {2}
    assert found.metrics["acc1"] == pytest.approx(0.5, abs=1e-3) and found.pessimistic["acc1"] == 0
    assert found.pessimistic["acc5"] == 1


def test_first_twins() -> None:
    names = torch.tensor([[1.0, 2], [0, 1], [1, 2], [3, 3], [0, 1], [1, 2]])
    assert first_twins(names).tolist() == [0, 1, 0, 3, 1, 0]


@pytest.mark.parametrize("count", [1, 3, 17])
def test_equal_classes_tie_for_every_image(count: int) -> None:
    """A matrix product alone rounds some of seven equal columns otherwise."""
    classes = unit(1, 512, 0).expand(7, -1).contiguous()
    found = zeroshot_metrics(unit(count, 512, 1), classes, [0] * count)
    assert found.outcomes["pessimistic_position"].tolist() == [7] * count


def test_classes_that_cannot_be_predicted_are_never_right() -> None:
    scores = torch.tensor([[0.0, 1, -torch.inf, -torch.inf, -torch.inf]])
    found = classification_metrics([scores, scores], torch.tensor([2, 1]), 5, "lp_")
    assert found.metrics == {"lp_acc1": 0.5, "lp_mean_per_class_recall": 0.5, "lp_acc5": 0.5}
    assert found.chance == {"lp_acc1": 0.2, "lp_mean_per_class_recall": 0.2, "lp_acc5": 1}


@pytest.mark.parametrize("classes", [1, 3, 5, 6, 40])
def test_ties_against_the_right_class_are_never_of_use(classes: int) -> None:
    """Whatever ties, and whatever can't be predicted."""
    generator = torch.Generator().manual_seed(classes)
    scores = torch.randint(0, 3, (300, classes), generator=generator).float()
    scores[:, torch.rand(classes, generator=generator) < 0.4] = -torch.inf
    scores[200:] = torch.where(torch.rand(100, classes, generator=generator) < 0.4, -torch.inf, scores[200:])
    found = classification_metrics([scores], torch.randint(0, classes, (300,), generator=generator), classes)
    assert set(found.pessimistic) == set(found.metrics)
    for name, value in found.pessimistic.items():
        assert value <= found.metrics[name]
    assert (found.outcomes["pessimistic_position"] >= found.outcomes["position"]).all()
    right = scores.gather(1, torch.from_numpy(found.outcomes["label"]).long()[:, None])[:, 0]
    assert (found.outcomes["position"][right.isinf().numpy()] == classes + 1).all()


def recomputed(outcomes: dict[str, np.ndarray]) -> dict[str, float]:
    label, right = outcomes["label"], outcomes["predicted"] == outcomes["label"]
    return {
        "acc1": float((outcomes["position"] == 1).mean()),
        "acc5": float((outcomes["position"] <= 5).mean()),
        "mean_per_class_recall": float(np.mean([right[label == each].mean() for each in np.unique(label)])),
    }


@pytest.fixture(scope="module")
def several() -> Evaluation:
    return zeroshot_metrics(*tied(400, 12, 3))


def test_outcomes_give_the_metrics(several: Evaluation) -> None:
    assert recomputed(several.outcomes) == pytest.approx(several.metrics)
    worst = several.outcomes | {"position": several.outcomes["pessimistic_position"]}
    assert recomputed(worst)["acc1"] == several.pessimistic["acc1"]
    assert recomputed(worst)["acc5"] == several.pessimistic["acc5"]


def test_tables_hold_every_image(several: Evaluation) -> None:
    names = [f"name {label}" for label in range(13)]  # the last class has no image
    tables = class_tables(several.outcomes, names)
    head, *rows = tables["confusion"]
    assert head == ["label", "predicted", "n", "class", "predicted_class"]
    matrix = np.zeros((13, 13), int)
    for label, predicted, n, name, other in rows:
        assert (name, other) == (names[int(label)], names[int(predicted)])
        matrix[int(label), int(predicted)] = int(n)
    expected = np.zeros((13, 13), int)
    np.add.at(expected, (several.outcomes["label"], several.outcomes["predicted"]), 1)
    np.testing.assert_array_equal(matrix, expected)
    assert all(row[2] != "0" for row in rows)
    recalls = []
    for label, name, n, correct, recall, acc5, other, times in tables["per_class"][1:]:
        row = matrix[int(label)].copy()
        assert (name, int(n), int(correct)) == (names[int(label)], row.sum(), row[int(label)])
        if int(n):
            recalls.append(float(recall))
            row[int(label)] = 0
            assert (row[names.index(other)], int(times)) == (row.max(), row.max())
            in_five = several.outcomes["position"][several.outcomes["label"] == int(label)] <= 5
            assert float(acc5) == pytest.approx(in_five.mean(), abs=1e-6)
        else:
            assert (recall, acc5, other, times) == ("",) * 4
    assert np.mean(recalls) == pytest.approx(several.metrics["mean_per_class_recall"], abs=1e-6)


def test_chance_by_simulation() -> None:
    classes, labels = 8, [0] * 20 + [1] * 3 + [7]
    found = [zeroshot_metrics(unit(24, 16, seed), unit(classes, 16, 10_000 + seed), labels) for seed in range(400)]
    for name, chance in found[0].chance.items():
        values = np.array([each.metrics[name] for each in found])
        assert abs(values.mean() - chance) < 4 * values.std() / len(values) ** 0.5, name


def test_class_embeddings_are_means_over_templates() -> None:
    prompts = unit(6, 4, 0)
    expected = F.normalize(torch.stack([prompts[:3].mean(0), prompts[3:].mean(0)]), dim=-1)
    torch.testing.assert_close(class_embeddings(prompts, 2), expected)
