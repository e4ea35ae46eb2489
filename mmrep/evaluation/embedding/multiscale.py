"""Image embeddings at several scales, merged by their maximum (SuperGlobal, arXiv 2308.06954)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmrep.config.checks import require
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.cache import EmbeddingCache, Key, image_key, require_finite, through_cache
from mmrep.evaluation.embedding.embed import Centre, Views, centre_of, embed_images
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.resolution import at_resolution


def scaled_size(model: DualEncoder, scale: float) -> tuple[int, int]:
    """Return the model's image size times `scale`, rounded to multiples of its patch size, at least one patch."""
    size = zip(model.image.size, model.image.trunk.patch_embed.patch_size, strict=True)
    rows, columns = (max(1, round(side * scale / patch)) * patch for side, patch in size)
    return rows, columns


def multiscale_images(context: Context, scales: Sequence[float]) -> list[Float[Tensor, "images embed"]]:
    """Return the image embeddings of every model: their elementwise maximum over scales, of unit length, on the CPU.

    At each scale the model's evaluation transform resizes to its image size times the scale, the position embedding is
    resampled, and the embedding is normalised; so is the maximum. Every image is decoded once. The other changes of
    SuperGlobal concern the trunk and the pooling, so they can't be applied to a trained model's embeddings.

    Raises:
        ConfigError: a trunk that can't be resized; a model under FSDP2.
        MmrepError: embeddings that are not finite.
    """
    models, config, cache = list(context.models.values()), context.config, context.cache
    sizes = [sorted({scaled_size(model, scale) for scale in scales}) for model in models]
    if all(own == [model.image.size] for own, model in zip(sizes, models, strict=True)):
        return context.images
    data = context.evalset.records.identity() if cache else ""

    def key(cache: EmbeddingCache, i: int) -> Key:
        views = ("maximum", *(Centre(*size, *models[i].image.fit[2:]) for size in sizes[i]))
        return image_key(cache, models[i], views, data, config.batch_size)

    found = through_cache(cache, len(models), key, lambda missing: _embedded(context, {i: sizes[i] for i in missing}))
    for name, rows in zip(context.models, found, strict=True):
        require_finite(rows, name, f"embeddings on {context.evalset.name} at scales {', '.join(map(str, scales))}")
    return found


def _embedded(context: Context, sizes: dict[int, list[tuple[int, int]]]) -> list[Float[Tensor, "images embed"]]:
    """Compute the embeddings of some models in one pass over the images for all scales."""
    resized: list[list[DualEncoder]] = []
    for i, (name, model) in enumerate(context.models.items()):
        if i in sizes:
            sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
            require(
                not sharded, f"model {name}: instance.scales: a model under FSDP2 can't be resized; run without FSDP2"
            )
            resized.append(
                [model if model.image.size == size else at_resolution(model, size).eval() for size in sizes[i]]
            )

    def encode(views: Views) -> list[Tensor]:
        return [
            F.normalize(torch.stack([x.encode_image(views[centre_of(x)].to(x.device)) for x in scaled]).amax(0), dim=-1)
            for scaled in resized
        ]

    views = sorted({centre_of(each) for scaled in resized for each in scaled})
    evalset = context.evalset
    return embed_images(encode, views, evalset.records, context.config, evalset.name, context.quiet)
