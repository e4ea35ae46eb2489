"""Retrieval with a model: captions are matched to the images that own them."""

import torch

from mmrep.evaluation.retrieval import flat_captions


def test_ragged_captions_belong_to_their_images() -> None:
    texts, owner = flat_captions([["a cat", "two cats on a mat"], ["one dog"], ["a red car", "cars", "the old car"]])
    assert texts == ["a cat", "two cats on a mat", "one dog", "a red car", "cars", "the old car"]
    assert torch.equal(owner, torch.tensor([0, 0, 1, 2, 2, 2]))
