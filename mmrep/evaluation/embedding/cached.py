"""Embeddings from the cache, or made and kept there: the same bits either way."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from mmrep.config.checks import MmrepError
from mmrep.config.evaluation import EvaluationConfig
from mmrep.evaluation.embedding.cache import EmbeddingCache, image_key, text_key
from mmrep.evaluation.embedding.embed import centre_of, embed_set, embed_texts
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder


def embed_set_cached(
    models: Sequence[DualEncoder],
    records: Records,
    config: EvaluationConfig,
    cache: EmbeddingCache | None,
    name: str = "",
    quiet: bool = True,
) -> list[Float[Tensor, "images embed"]]:
    """`embed_set`, for the models that the cache lacks; where it lacks none, no image is decoded."""
    if cache is None:
        return embed_set(models, records, config, name, quiet)
    data = records.identity()
    keys = [image_key(cache, model, centre_of(model), data, config.batch_size) for model in models]
    found = [cache.get(key) for key in keys]
    missing = [i for i, rows in enumerate(found) if rows is None]
    if missing:
        made = embed_set([models[i] for i in missing], records, config, name, quiet)
        for i, rows in zip(missing, made, strict=True):
            found[i] = rows
            if rows.isfinite().all():
                cache.put(keys[i], rows)
    return [rows for rows in found if rows is not None]


def embed_texts_cached(
    model: DualEncoder, texts: Sequence[str], batch_size: int, cache: EmbeddingCache | None
) -> Float[Tensor, "texts embed"]:
    """`embed_texts`, unless the cache has the embeddings of the distinct texts."""
    unique = sorted(set(texts))  # in one order, so that batches, and with them rounding, are the same
    if cache is None:
        rows = embed_texts(model, unique, batch_size)
    else:
        key = text_key(cache, model, unique, batch_size)
        found = cache.get(key)
        rows = embed_texts(model, unique, batch_size) if found is None else found
        if found is None and rows.isfinite().all():
            cache.put(key, rows)
    places = {text: row for row, text in enumerate(unique)}
    return rows[[places[text] for text in texts]]


def require_finite(rows: Float[Tensor, "rows embed"], model: str, what: str) -> None:
    """Raises MmrepError where embeddings of a model are not finite; `what` they are, and of which set."""
    if not rows.isfinite().all():
        raise MmrepError(f"model {model}: its {what} are not finite; did training diverge?")
