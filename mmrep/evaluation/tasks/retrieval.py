"""Image-text retrieval, both ways, with several captions an image."""

import torch
from jaxtyping import Int64
from torch import Tensor

from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.ranking import retrieval_metrics


def retrieval(context: Context) -> list[Evaluation]:
    """Retrieval between the images of a set and their captions, under every model.

    Raises:
        DataError: an image without caption.
    """
    for position, own in enumerate(context.texts):
        if not own:
            raise DataError(
                f"evaluation set {context.evalset.name}: image {context.evalset.records.key(position)} has no caption; "
                "retrieval needs one for every image"
            )
    texts, image_of_text = flat_captions(context.texts)
    return [
        retrieval_metrics(images, context.encode_texts(model, texts), image_of_text, context.evalset.name)
        for model, images in zip(context.models.values(), context.images, strict=True)
    ]


def flat_captions(texts: list[list[str]]) -> tuple[list[str], Int64[Tensor, " texts"]]:
    """All captions of a set, and the image that each belongs to."""
    flat = [text for own in texts for text in own]
    return flat, torch.tensor([image for image, own in enumerate(texts) for _ in own])
