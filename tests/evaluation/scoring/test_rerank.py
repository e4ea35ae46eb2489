"""SuperGlobal's reranking against its equations written out in float64, one query and one descriptor at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmrep.evaluation.scoring import rerank as module
from mmrep.evaluation.scoring.rerank import rerank


def points(count: int, seed: int, dim: int = 12) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def reference(query: NDArray, found: NDArray, neighbours: int, beta: float) -> NDArray:
    """The scores of a query's first results, by the equations."""
    count = len(found)
    refined = np.empty_like(found)
    for i in range(count):
        others = sorted((j for j in range(count) if j != i), key=lambda j: -(found[i] @ found[j]))[:neighbours]
        numerator, denominator = found[i].copy(), 1.0
        for j in others:
            weight = beta * max(0.0, found[i] @ found[j])
            numerator += weight * found[j]
            denominator += weight
        refined[i] = numerator / denominator
    s1 = np.array([query @ each for each in refined])
    best = sorted(range(count), key=lambda i: -s1[i])[: neighbours + 1]
    expanded = refined[best].max(axis=0)
    s2 = np.array([expanded @ each for each in refined])
    return (s1 + s2) / 2


@pytest.mark.parametrize(
    ("top", "neighbours", "beta"), [(20, 9, 0.15), (7, 9, 0.15), (30, 3, 0.6), (1, 9, 0.15), (12, 4, 0.0)]
)
def test_scores_and_order_are_those_of_the_equations(top: int, neighbours: int, beta: float) -> None:
    queries, gallery = points(37, seed=1), points(60, seed=2)
    first = (queries @ gallery.T).topk(top).indices
    found = rerank(queries, gallery, first, neighbours, beta)
    for i in range(len(queries)):
        scores = reference(queries[i].double().numpy(), gallery[first[i]].double().numpy(), neighbours, beta)
        order = np.argsort(-scores, kind="stable")
        np.testing.assert_allclose(found.scores[i].numpy(), scores[order], atol=1e-12)
        assert found.positions[i].tolist() == first[i][order].tolist()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, gallery = points(9, seed=3), points(30, seed=4)
    first = (queries @ gallery.T).topk(15).indices
    whole = rerank(queries, gallery, first)
    monkeypatch.setattr(module, "_BLOCK", 2)
    apart = rerank(queries, gallery, first)
    assert torch.equal(whole.positions, apart.positions)
    torch.testing.assert_close(whole.scores, apart.scores, rtol=0, atol=1e-6)


def test_neighbours_bring_up_what_the_query_alone_misses() -> None:
    # The query is near to one image of a tight group, and nearer to a stranger than to the others of the group.
    group = F.normalize(torch.tensor([[1.0, 0, 0.9], [0, 0.15, 1], [0, 0.1, 1]]), dim=1)
    stranger, query = F.normalize(torch.tensor([[0.2, -1, 0]]), dim=1), torch.tensor([[1.0, 0, 0]])
    gallery = torch.cat([group, stranger])
    first = (query @ gallery.T).topk(4).indices
    assert first[0, :2].tolist() == [0, 3]
    assert rerank(query, gallery, first, 1, 0.5).positions[0, -1] == 3


def test_only_the_first_results_matter() -> None:
    queries, gallery = points(4, seed=5), points(30, seed=6)
    first = (queries @ gallery.T).topk(8).indices
    found = rerank(queries, gallery, first)
    for i in range(4):
        assert sorted(found.positions[i].tolist()) == sorted(first[i].tolist())
        apart = rerank(queries[i : i + 1], gallery[first[i]], torch.arange(8)[None])
        torch.testing.assert_close(apart.scores[0], found.scores[i], rtol=0, atol=1e-6)
