"""Whole orders, ties in them, average precision, and what chance gives."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.retrieval import retrieval_average_precision

from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.scoring import order as module
from mmrep.evaluation.scoring.order import average_precision, chance_precision, chance_recall, orders, worst


def points(count: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)), dim=1)


def flags(*rows: str) -> torch.Tensor:
    return torch.tensor([[each == "1" for each in row] for row in rows])


@pytest.mark.parametrize("block", [1, 40, 2**21])
def test_orders_are_by_similarity(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    queries, gallery = points(7, seed=0), points(11, seed=1)
    parts = list(orders(queries, gallery))
    assert [i for rows, _ in parts for i in rows] == list(range(7))
    found = torch.cat([order.positions for _, order in parts])
    assert torch.equal(found, (queries.double() @ gallery.double().T).argsort(dim=1, descending=True))


@pytest.mark.parametrize("block", [30, 2**21])
def test_an_image_is_not_among_its_own_results(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    images = points(11, seed=2)
    images[7] = images[3]  # the same picture twice: each is the other's nearest, not left out with it
    found = torch.cat([order.positions for _, order in orders(images, images, own=True)])
    assert found.shape == (11, 10)
    for i, row in enumerate(found.tolist()):
        assert sorted(row) == [j for j in range(11) if j != i]
    assert (found[3, 0], found[7, 0]) == (7, 3)


def test_ties_stand_in_the_order_of_the_gallery_and_are_told() -> None:
    gallery = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    ((_, order),) = orders(torch.tensor([[1.0, 0]]), gallery)
    assert order.positions.tolist() == [[1, 3, 0, 2, 4]]
    assert order.tied.tolist() == [[False, True, False, True, True]]


def test_equal_rows_tie_in_a_block_of_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product with one row adds up some columns in another order than others."""
    monkeypatch.setattr(module, "_BLOCK", 1)
    generator = torch.Generator().manual_seed(0)
    queries, row = torch.randn(3, 512, generator=generator), torch.randn(1, 512, generator=generator)
    for count in (5, 15, 31, 1001):
        for _, order in orders(queries, row.expand(count, -1).contiguous()):
            assert order.positions.tolist() == [list(range(count))] and order.tied[0, 1:].all()


def test_reranking_reorders_the_first_only() -> None:
    images, config = points(20, seed=3), InstanceConfig(rerank_top=6, neighbours=3, beta=0.5)
    plain = torch.cat([order.positions for _, order in orders(images, images, own=True)])
    ((_, order),) = orders(images, images, own=True, reranking=config)
    assert torch.equal(order.positions[:, 6:], plain[:, 6:])
    assert not torch.equal(order.positions[:, :6], plain[:, :6])
    assert torch.equal(order.positions[:, :6].sort().values, plain[:, :6].sort().values)
    for i in range(20):
        assert i not in order.positions[i]


def test_equal_descriptors_tie_after_reranking() -> None:
    images = points(20, seed=4)
    gallery = torch.cat([images, images[:10]])
    ((_, order),) = orders(images[:5], gallery, reranking=InstanceConfig(rerank_top=16, neighbours=3, beta=0.5))
    for positions, tied in zip(order.positions.tolist(), order.tied.tolist(), strict=True):
        for place in range(1, 16):
            assert tied[place] == (positions[place] % 20 == positions[place - 1] % 20)


def test_reranked_results_do_not_tie_with_those_behind_them() -> None:
    ((_, order),) = orders(points(1, 5), points(1, 6).expand(6, -1), reranking=InstanceConfig(rerank_top=2))
    assert order.tied.tolist() == [[False, True, False, True, True, True]]


def test_worst_order_of_ties() -> None:
    right = flags("10110", "01011", "10110", "11000")
    tied = flags("00000", "01011", "01101", "01000")
    assert torch.equal(worst(right, tied), flags("10110", "01011", "01101", "11000"))
    assert torch.equal(worst(flags("1101"), flags("0110")), flags("0111")[:, [0, 1, 2, 3]])


def test_average_precision_of_hand_made_cases() -> None:
    right = flags("10100", "00001", "11111", "00000")
    expected = [(1 + 2 / 3) / 2, 1 / 5, 1, 0]
    of = torch.tensor([2.0, 1, 5, 3], dtype=torch.float64)
    assert average_precision(right, of).tolist() == pytest.approx(expected)
    # By trapezoids: ranks 0 and 2: (1 + 1)/2 and (1/2 + 2/3)/2; rank 4: (0 + 1/5)/2.
    expected = [(1 + (1 / 2 + 2 / 3) / 2) / 2, 0.1, 1, 0]
    assert average_precision(right, of, trapezoid=True).tolist() == pytest.approx(expected)
    assert average_precision(flags("001"), torch.tensor([4.0], dtype=torch.float64)).tolist() == [1 / 12]


def test_average_precision_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(20, 30, generator=generator) < 0.2
    right[:, 4] = True
    scores = torch.arange(30, 0, -1.0)
    expected = [float(retrieval_average_precision(scores, row)) for row in right]
    np.testing.assert_allclose(average_precision(right, right.sum(1).double()), expected, atol=1e-6)


@pytest.mark.parametrize(("relevant", "places"), [(1, 1), (1, 5), (3, 3), (2, 6), (4, 7)])
def test_chance_is_the_mean_over_all_orders(relevant: int, places: int) -> None:
    every = torch.zeros(0, places, dtype=torch.bool)
    for chosen in itertools.combinations(range(places), relevant):
        row = torch.zeros(1, places, dtype=torch.bool)
        row[0, list(chosen)] = True
        every = torch.cat([every, row])
    of = torch.full((len(every),), float(relevant), dtype=torch.float64)
    counts, others = np.array([relevant]), np.array([places])
    assert chance_precision(counts, others)[0] == pytest.approx(float(average_precision(every, of).mean()))
    for k in (1, 3, 10):
        cut = float(average_precision(every[:, :k], of.clamp(max=k)).mean())
        assert chance_precision(counts, others, k)[0] == pytest.approx(cut)
        assert chance_recall(counts, others, k)[0] == pytest.approx(float(every[:, :k].any(1).double().mean()))
