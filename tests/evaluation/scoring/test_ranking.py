"""Retrieval metrics against brute force on the whole matrix, by hand-made cases, and their chance by simulation."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmrep.config.checks import MmrepError
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring import ranks
from mmrep.evaluation.scoring.ranking import RECALL_AT, average_precision, retrieval_metrics

RAGGED = [1, 7, 2, 3, 1, 1, 12, 1, 4, 1, 2, 1]


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def owners(counts: list[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def brute_ranks(scores: NDArray, own: NDArray) -> tuple[list[list[int]], list[list[int]]]:
    """The ranks of the own items of each row, ties in the order of the columns, and ties of others before them."""
    found: tuple[list[list[int]], list[list[int]]] = ([], [])
    for row, mine in zip(scores, own, strict=True):
        for ranks_of_own, second in zip(found, (np.arange(len(row)), mine), strict=True):
            order = np.lexsort((second, -row))
            ranks_of_own.append((np.flatnonzero(mine[order]) + 1).tolist())
    return found


def brute_precision(ranks_of_own: list[list[int]], k: int) -> float:
    """Mean over the queries of the mean precision at own items, missed ones counting nothing."""
    found = [sum(nth / r for nth, r in enumerate(own, 1) if r <= k) / min(k, len(own)) for own in ranks_of_own]
    return float(np.mean(found))


def clip_benchmark_recall(scores: Tensor, positive: Tensor, k: int) -> float:
    """Share of rows with a positive among torch.topk's k."""
    nearest = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return float(positive.gather(1, nearest).any(1).double().mean())


def check_by_brute_force(images: Tensor, texts: Tensor, image_of_text: Tensor) -> Evaluation:
    found = retrieval_metrics(images, texts, image_of_text)
    scores = texts @ images.T
    positive = image_of_text[:, None] == torch.arange(len(images))
    for way, matrix, own in (("image", scores, positive), ("text", scores.T, positive.T)):
        places, worst = brute_ranks(matrix.double().numpy(), own.numpy())
        assert found.outcomes[f"{way}_position"].tolist() == [each[0] for each in places]
        assert found.outcomes[f"{way}_pessimistic_position"].tolist() == [each[0] for each in worst]
        for k in RECALL_AT:
            name = f"{way}_retrieval_recall@{k}"
            assert found.metrics[name] == pytest.approx(clip_benchmark_recall(matrix, own, k), abs=1e-12)
            assert found.pessimistic[name] == pytest.approx(np.mean([each[0] <= k for each in worst]), abs=1e-12)
        for values, expected in ((found.further, places), (found.pessimistic, worst)):
            best = [each[0] for each in expected]
            assert values[f"{way}_retrieval_mean_rank"] == pytest.approx(np.mean(best))
            assert values[f"{way}_retrieval_median_rank"] == np.median(best)
            assert values[f"{way}_retrieval_map@10"] == pytest.approx(brute_precision(expected, 10), abs=1e-12)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_whole_numbers_full_of_ties(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of any size; captions in any order."""
    generator = torch.Generator().manual_seed(seed)
    block = int(torch.randint(1, 5000, (1,), generator=generator))
    monkeypatch.setattr(ranks, "BLOCK", block)
    monkeypatch.setattr(ranks, "MIN_ROWS", 1)
    count, width = int(torch.randint(1, 90, (1,), generator=generator)), 1 + seed % 4
    counts = torch.randint(1, 2 + 3 * (seed % 5), (count,), generator=generator)
    image_of_text = torch.arange(count).repeat_interleave(counts)
    image_of_text = image_of_text[torch.randperm(len(image_of_text), generator=generator)]
    images = torch.randint(-2, 3, (count, width), generator=generator).float()
    texts = torch.randint(-2, 3, (len(image_of_text), width), generator=generator).float()
    check_by_brute_force(images, texts, image_of_text)


@pytest.mark.parametrize(("images", "counts"), [(400, [1] * 400), (700, [2, 1] * 350), (60, [11, 3] * 30)])
def test_ties_where_topk_changes_its_algorithm(images: int, counts: list[int]) -> None:
    """What topk(5) keeps of equal scores, topk(10) may not."""
    generator = torch.Generator().manual_seed(0)
    image_of_text = owners(counts)
    embeddings = torch.randint(0, 3, (images, 2), generator=generator).float()
    found = check_by_brute_force(embeddings, embeddings[image_of_text], image_of_text)
    assert found.pessimistic["image_retrieval_recall@10"] < found.metrics["image_retrieval_recall@10"]


@pytest.mark.parametrize("count", [2, 3, 5, 15, 31])
@pytest.mark.parametrize("width", [64, 512])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 2**17])
def test_equal_images_tie_however_few_texts_there_are(
    count: int, width: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products of few vectors add up some of them in another order than others."""
    monkeypatch.setattr(ranks, "BLOCK", rows * count)
    monkeypatch.setattr(ranks, "MIN_ROWS", 1)
    images, texts = unit(1, width, 0).expand(count, -1).contiguous(), unit(count, width, 1)
    found = retrieval_metrics(images, texts, torch.arange(count)).outcomes
    assert found["image_position"].tolist() == list(range(1, count + 1))
    assert found["image_pessimistic_position"].tolist() == [count] * count
    found = retrieval_metrics(texts, images, torch.arange(count)).outcomes
    assert found["text_pessimistic_position"].tolist() == [count] * count


def test_embeddings_rounded_to_bfloat16() -> None:
    image_of_text = owners(RAGGED * 4)
    images = unit(len(RAGGED) * 4, 4, 0).bfloat16()
    texts = images[image_of_text] + 0.5 * unit(len(image_of_text), 4, 1).bfloat16()
    found = check_by_brute_force(images.float(), texts.float(), image_of_text)
    for name, value in retrieval_metrics(images, texts, image_of_text).metrics.items():
        assert value == found.metrics[name]


def test_counts_beyond_a_byte() -> None:
    """Text 0 is every image's nearest, image 0 every text's."""
    count = torch.arange(2100)[:, None]
    found = retrieval_metrics(-(count + 1.0), 1 + count / 4096, count[:, 0]).outcomes
    for way in ("image", "text"):
        for ties in ("", "pessimistic_"):
            assert found[f"{way}_{ties}position"].tolist() == (count[:, 0] + 1).tolist()


def test_ranks_in_double_precision() -> None:
    image_of_text = owners(RAGGED)
    check_by_brute_force(unit(len(RAGGED), 8, 0).double(), unit(len(image_of_text), 8, 1).double(), image_of_text)


@pytest.mark.parametrize("seed", range(8))
def test_eight_captions_an_image(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image's own equal captions are the only ties. Not every caption is within the depth.

    The values are whole numbers whose products a double holds exactly: some BLAS libraries round the products of equal
    rows of doubles differently at different places of a block.
    """
    monkeypatch.setattr(ranks, "BLOCK", 50 * (20 + seed))
    monkeypatch.setattr(ranks, "MIN_ROWS", 1)
    image_of_text = owners([8] * 50)
    images = unit(50, 6, seed).double()
    texts = images[image_of_text] + (0.2 + seed / 8) * unit(200, 6, 100 + seed).double().repeat_interleave(2, 0)
    images, texts = ((2**20 * each).round() for each in (images, texts))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    check_by_brute_force(images, texts[order], image_of_text[order])


def test_all_embeddings_equal(caplog: pytest.LogCaptureFixture) -> None:
    image_of_text = owners([3] * 50)
    images = F.normalize(torch.ones(50, 8), dim=-1)
    with caplog.at_level(logging.WARNING, "mmrep"):
        found = retrieval_metrics(images, images[image_of_text], image_of_text, "flat")
    assert found.pessimistic["image_retrieval_mean_rank"] == 50
    assert found.pessimistic["text_retrieval_mean_rank"] == 148
    assert found.pessimistic["text_retrieval_map@10"] == found.pessimistic["image_retrieval_recall@10"] == 0
    assert found.further["image_retrieval_mean_rank"] == 25.5
    assert found.further["text_retrieval_mean_rank"] == 74.5
    assert [record.getMessage().partition(": ties decide recall for ")[0] for record in caplog.records] == [
        f"evaluation set flat: {way} retrieval" for way in ("image", "text")
    ]


def test_only_ties_of_different_images_matter(caplog: pytest.LogCaptureFixture) -> None:
    """Equal captions of one image, then of two images."""
    texts = torch.eye(3)[[0, 0, 1, 2]]
    with caplog.at_level(logging.WARNING, "mmrep"):
        found = retrieval_metrics(torch.eye(3), texts, torch.tensor([0, 0, 1, 2]))
    assert found.metrics["text_retrieval_recall@1"] == found.pessimistic["text_retrieval_recall@1"] == 1
    assert found.further["text_retrieval_map@10"] == found.pessimistic["text_retrieval_map@10"] == 1
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "mmrep"):
        twins = torch.eye(3)[[0, 0, 1]]
        found = retrieval_metrics(twins, twins, torch.arange(3))
    assert found.outcomes["text_pessimistic_position"].tolist() == [2, 2, 1]
    assert found.metrics["text_retrieval_recall@1"] == pytest.approx(2 / 3)  # of equal rows topk gets one right
    assert found.pessimistic["text_retrieval_recall@1"] == pytest.approx(1 / 3)
    assert "text retrieval: ties decide recall for 1 of 3 queries" in caplog.text


@pytest.mark.parametrize("texts", [1, 3])
def test_one_image(texts: int) -> None:
    found = retrieval_metrics(unit(1, 4, 0), unit(texts, 4, 1), torch.zeros(texts, dtype=torch.int64))
    assert set(found.metrics.values()) == set(found.pessimistic.values()) == {1.0}


def test_average_precision_by_hand() -> None:
    """Own items at 1, 3 and 12 of three; at 2 of one; none among the first ten of two."""
    positions = np.array([[1, 3, 12], [2, ranks.NONE, ranks.NONE], [11, 13, ranks.NONE]], np.int32)
    found = average_precision(positions, np.array([3, 1, 2]), 10)
    assert found.tolist() == pytest.approx([(1 + 2 / 3) / 3, 0.5, 0])
    assert average_precision(positions[:1], np.array([40]), 10).tolist() == pytest.approx([(1 + 2 / 3) / 10])


@pytest.mark.parametrize(
    ("image_of_text", "message"),
    [
        ([0, 2, 0, 2], "1 of 3 images have no text, first image 1"),
        ([0, 1, 2, 3], "expected an image from 0 to 2 for each of 4 texts, got 4 from 0 to 3"),
        ([0, 1, -1, 2], "got 4 from -1 to 2"),
        ([], "there are no texts"),
    ],
)
def test_images_and_texts_that_do_not_fit(image_of_text: list[int], message: str) -> None:
    with pytest.raises(MmrepError, match=f"^evaluation set x: .*{message}"):
        retrieval_metrics(
            unit(3, 4, 0), unit(len(image_of_text), 4, 1), torch.tensor(image_of_text, dtype=torch.int64), "x"
        )


@pytest.mark.parametrize(("kind", "value"), [("image", float("nan")), ("text", float("inf"))])
def test_embeddings_that_are_not_finite(kind: str, value: float) -> None:
    images, texts = unit(3, 4, 0), unit(3, 4, 1)
    (images if kind == "image" else texts)[2, 1] = value
    with pytest.raises(MmrepError, match=f"the embedding of {kind} 2 .* is not finite"):
        retrieval_metrics(images, texts, torch.arange(3))


def test_chance_by_simulation() -> None:
    image_of_text = owners(RAGGED)
    found = [
        retrieval_metrics(unit(len(RAGGED), 32, seed), unit(len(image_of_text), 32, 10_000 + seed), image_of_text)
        for seed in range(500)
    ]
    for name, chance in found[0].chance.items():
        values = np.array([each.metrics[name] for each in found])
        assert abs(values.mean() - chance) < 4 * values.std() / len(values) ** 0.5, name


def test_chance_by_hand() -> None:
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


def test_outcomes_give_all_figures() -> None:
    image_of_text = owners(RAGGED)
    images = unit(len(RAGGED), 8, 0)
    found = retrieval_metrics(images, F.normalize(images[image_of_text] + unit(34 + 2, 8, 1), dim=-1), image_of_text)
    kept = found.outcomes
    assert kept["image_of_text"].tolist() == image_of_text.tolist()
    for way, count in (("image", len(image_of_text)), ("text", len(RAGGED))):
        assert kept[f"{way}_position"].shape == (count,) and kept[f"{way}_position"].dtype == np.int32
        for i, k in enumerate(RECALL_AT):
            name = f"{way}_retrieval_recall@{k}"
            assert found.metrics[name] == (kept[f"{way}_position"] <= k).mean() == kept[f"{way}_hits"][:, i].mean()
            assert found.pessimistic[name] == (kept[f"{way}_pessimistic_position"] <= k).mean()
        assert found.further[f"{way}_retrieval_mean_rank"] == kept[f"{way}_position"].mean()
    assert found.further["text_retrieval_map@10"] == kept["text_precision"].mean()
    inverse = np.where(kept["image_position"] <= 10, 1 / kept["image_position"], 0)
    assert found.further["image_retrieval_map@10"] == pytest.approx(inverse.mean())
