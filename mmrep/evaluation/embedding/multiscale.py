"""Image embeddings at several scales, merged by their maximum (SuperGlobal, arXiv 2308.06954)."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmrep.config.checks import require
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.cache import image_key, require_finite
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
    sizes = {name: sorted({scaled_size(model, scale) for scale in scales}) for name, model in context.models.items()}
    if all(sizes[name] == [model.image.size] for name, model in context.models.items()):
        return context.images
    records, config, cache = context.evalset.records, context.config, context.cache
    data = records.identity() if cache else ""
    keys, found = {}, {}
    for name, model in context.models.items():
        if cache:
            views = ("maximum", *(_view(model, size) for size in sizes[name]))
            keys[name] = image_key(cache, model, views, data, config.batch_size)
            rows = cache.get(keys[name])
            if rows is not None:
                found[name] = rows
    missing = [name for name in context.models if name not in found]
    if missing:
        made = _embedded(context, {name: sizes[name] for name in missing})
        for name, rows in zip(missing, made, strict=True):
            at = ", ".join(map(str, scales))
            require_finite(rows, name, f"embeddings on {context.evalset.name} at scales {at}")
            if cache:
                cache.put(keys[name], rows)
            found[name] = rows
    return [found[name] for name in context.models]


def _embedded(context: Context, sizes: dict[str, list[tuple[int, int]]]) -> list[Float[Tensor, "images embed"]]:
    """Compute the embeddings in one pass over the images for all models and scales."""
    for name in sizes:
        sharded = any(isinstance(parameter, DTensor) for parameter in context.models[name].parameters())
        require(not sharded, f"model {name}: instance.scales: a model under FSDP2 can't be resized; run without FSDP2")
    models = [
        {size: each if each.image.size == size else at_resolution(each, size).eval() for size in sizes[name]}
        for name in sizes
        for each in (context.models[name],)
    ]

    def encode(views: Views) -> list[Tensor]:
        return [F.normalize(_maximum(scaled, views), dim=-1) for scaled in models]

    views = sorted({centre_of(each) for scaled in models for each in scaled.values()})
    evalset = context.evalset
    return embed_images(encode, views, evalset.records, context.config, evalset.name, context.quiet)


def _view(model: DualEncoder, size: tuple[int, int]) -> Centre:
    return Centre(*size, *model.image.fit[2:])


def _maximum(scaled: dict[tuple[int, int], DualEncoder], views: Views) -> Float[Tensor, "batch embed"]:
    merged = None
    for model in scaled.values():
        x = model.encode_image(views[centre_of(model)].to(model.device))
        merged = x if merged is None else merged.maximum(x)
    assert merged is not None, "the config has at least one scale"
    return merged
