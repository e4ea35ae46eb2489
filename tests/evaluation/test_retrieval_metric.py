"""The torchmetrics metric against `retrieval_metrics` on all embeddings at once."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from mmrep.config.checks import MmrepError
from mmrep.evaluation.scoring.ranking import retrieval_metrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmrep.evaluation.retrieval_metric import ImageTextRetrieval


def test_batches_in_any_order_give_the_figures_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(30, 8, generator=generator), dim=-1)
    owner = torch.cat([torch.arange(30), torch.randint(0, 30, (40,), generator=generator)])
    texts = F.normalize(images[owner] + torch.randn(70, 8, generator=generator), dim=-1)
    ids = torch.randperm(1000, generator=generator)[:30]
    metric = ImageTextRetrieval()
    for part, of_text in zip(torch.randperm(30, generator=generator).split(7), torch.arange(70).split(15), strict=True):
        metric.update(images[part], texts[of_text], ids[part], ids[owner[of_text]])
    expected = retrieval_metrics(images, texts, owner).metrics
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(expected)


@pytest.mark.parametrize(("image_ids", "of_text"), [([0, 0], [0, 0]), ([0, 1], [0, 2]), ([3, 1], [1, 2])])
def test_ids_that_do_not_fit(image_ids: list[int], of_text: list[int]) -> None:
    metric = ImageTextRetrieval()
    metric.update(torch.eye(2), torch.eye(2), torch.tensor(image_ids), torch.tensor(of_text))
    with pytest.raises(MmrepError, match="expected one image for each id"):
        metric.compute()
