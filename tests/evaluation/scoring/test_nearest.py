"""The nearest rows against a full sort, whatever the blocks; ties by the lower index."""

import pytest
import torch
from torch import Tensor

from mmrep.evaluation.scoring import nearest as module
from mmrep.evaluation.scoring.nearest import nearest


def whole(rows: int, width: int, seed: int) -> Tensor:
    """Small whole numbers: inner products are exact, and many are equal."""
    return torch.randint(-2, 3, (rows, width), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize(("queries", "gallery"), [(512, 16384), (7, 11), (50, 60)])
@pytest.mark.parametrize("k", [1, 5, 60])
def test_nearest_is_a_stable_sort(queries: int, gallery: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_QUERIES", queries)
    monkeypatch.setattr(module, "_GALLERY", gallery)
    a, b = whole(40, 3, 0), whole(150, 3, 1)
    value, index = nearest(a, b, k)
    expected = (a @ b.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(value, expected.values[:, :k]) and torch.equal(index, expected.indices[:, :k])


@pytest.mark.parametrize("block", [16, 16384])
@pytest.mark.parametrize("count", [5, 17, 31, 1001])
def test_equal_rows_tie(count: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products one row high or, at a last block, one column wide add up in another order than larger ones."""
    monkeypatch.setattr(module, "_GALLERY", block)
    monkeypatch.setattr(module, "_QUERIES", 16)
    generator = torch.Generator().manual_seed(0)
    queries, row = torch.randn(17, 512, generator=generator), torch.randn(1, 512, generator=generator)
    gallery = row.expand(count, -1).contiguous()
    assert nearest(queries, gallery, 5)[1].tolist() == [list(range(5))] * 17
