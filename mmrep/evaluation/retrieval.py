"""Image-text retrieval, both ways, with several captions an image."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep.evaluation.embed import embed_texts
from mmrep.evaluation.metrics import Evaluation, retrieval_metrics
from mmrep.model.dual_encoder import DualEncoder


def retrieval(
    model: DualEncoder, images: Float[Tensor, "images embed"], texts: list[list[str]], text_batch: int
) -> Evaluation:
    """Retrieval between embedded images and their captions.

    Args:
        model: reads the captions.
        images: embeddings of unit length.
        texts: the captions of each image.
        text_batch: captions in one forward pass.
    """
    return retrieval_metrics(images, *embed_captions(model, texts, text_batch))


def embed_captions(
    model: DualEncoder, texts: list[list[str]], text_batch: int
) -> tuple[Float[Tensor, "texts embed"], Int64[Tensor, " texts"]]:
    """All captions of a set, of unit length, and the image that each belongs to."""
    flat = [text for own in texts for text in own]
    image_of_text = torch.tensor([image for image, own in enumerate(texts) for _ in own])
    return embed_texts(model, flat, text_batch), image_of_text
