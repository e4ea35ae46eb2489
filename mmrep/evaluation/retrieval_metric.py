"""Image-text retrieval as a `torchmetrics.Metric`, for loops other than mmrep's."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from mmrep.config.checks import MmrepError
from mmrep.evaluation.scoring.ranking import retrieval_metrics


class ImageTextRetrieval(Metric):
    """Recall@1, 5 and 10 between images and their captions, both ways, with any number of captions an image.

    Names and figures are those of `retrieval_metrics`. Embeddings are kept until `compute`, which compares all of them,
    of all processes. Ids say which caption belongs to which image, so an image may come in another batch, or on another
    process, than its captions.

    >>> metric = ImageTextRetrieval()
    >>> metric.update(images, texts, image_ids, image_id_of_text)
    >>> metric.compute()["image_retrieval_recall@1"]
    """

    full_state_update = False

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        for name in ("images", "texts", "image_ids", "image_id_of_text"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, images: Float[Tensor, "images embed"], texts: Float[Tensor, "texts embed"],
        image_ids: Int64[Tensor, " images"], image_id_of_text: Int64[Tensor, " texts"],
    ) -> None:  # fmt: skip
        """Add a batch of embeddings of unit length."""
        self.images.append(images)
        self.texts.append(texts)
        self.image_ids.append(image_ids)
        self.image_id_of_text.append(image_id_of_text)

    def compute(self) -> dict[str, Tensor]:
        """Return each metric by name.

        Raises:
            MmrepError: an image id that occurs twice or without its caption, a caption without its image.
        """
        ids, order = dim_zero_cat(self.image_ids).sort()
        wanted = dim_zero_cat(self.image_id_of_text)
        owner = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
        if (ids[1:] == ids[:-1]).any() or (ids[owner] != wanted).any():
            raise MmrepError("image-text retrieval: expected one image for each id and for each text's image id")
        found = retrieval_metrics(dim_zero_cat(self.images)[order], dim_zero_cat(self.texts), owner.cpu())
        return {name: torch.tensor(value) for name, value in found.metrics.items()}
