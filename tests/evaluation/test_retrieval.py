"""Retrieval with a model: captions are matched to the images that own them."""

from collections.abc import Callable

import torch

from mmrep.evaluation.embed import embed_texts
from mmrep.evaluation.retrieval import retrieval
from mmrep.model.dual_encoder import DualEncoder


def test_ragged_captions_belong_to_their_images(tiny: Callable[..., DualEncoder]) -> None:
    model = tiny("avg", seed=3).eval()
    texts = [["a cat", "two cats on a mat"], ["one dog"], ["a red car", "cars", "the old car over there"]]
    # Each "image" is the embedding of its image's last caption.
    images = embed_texts(model, [own[-1] for own in texts], 8)
    found = retrieval(model, images, texts, 4)
    assert found.outcomes["image_of_text"].tolist() == [0, 0, 1, 2, 2, 2]
    assert found.metrics["text_retrieval_recall@1"] == 1
    assert [found.outcomes["image_position"][text] for text in (1, 2, 5)] == [1, 1, 1]
    turned = retrieval(model, images[torch.tensor([1, 2, 0])], texts, 4)
    assert turned.metrics["text_retrieval_recall@1"] == 0
