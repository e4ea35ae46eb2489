"""New dual encoders, from scratch or from trained weights."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mmrep.config.checks import ConfigError, require
from mmrep.config.model import ModelConfig
from mmrep.config.pooling import PoolConfig
from mmrep.model.convert import StateDict, load_open_clip_state_dict
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import CONFIG, complete_open_clip, config_from_dict, load, read_weights
from mmrep.model.presets import complete, from_open_clip

_HEAD, _PROJECTION = "image.pool.", "image.projection.weight"
_OPTIONAL = ("image.auxiliary_projections.", "logit_bias")
LOG = logging.getLogger("mmrep")


def create_model(
    name: str | None = None,
    pool: str | dict[str, Any] | PoolConfig = "cls",
    seed: int = 0,
    loss: str = "infonce",
    **fields: Any,
) -> DualEncoder:
    """A new dual encoder.

    Args:
        name: an open_clip model (`ViT-B-16`); None: `image` and `text` say it all.
        pool: a head's name, or `{"name": "ggem", "args": {"groups": 12}}`.
        seed: of initial values; models of one seed start equal wherever they share a parameter.
        loss: `sigmoid` adds a logit bias.
        fields: further fields of `ModelConfig`; `image` and `text` may be dicts of their fields.

    Raises:
        ConfigError: unknown names or arguments, parts that do not fit together.
    """
    if isinstance(pool, PoolConfig):
        pool = {"name": pool.name, "args": pool.args}
    config = config_from_dict({"name": name, "pool": pool, **fields})
    return build_model(config, seed, sigmoid=loss == "sigmoid")


def build_model(config: ModelConfig, seed: int, sigmoid: bool) -> DualEncoder:
    """A dual encoder from its config, with `config.weights` loaded if given.

    Raises:
        ConfigError: see `create_model`; weights that do not fit; a head that can't be swapped in under
            `pool_init: preserve`.
    """
    config = complete(config)
    if config.weights is None:
        return DualEncoder(config, seed, sigmoid)
    trained = _trained(config, Path(config.weights), sigmoid)
    if config.pool_init == "preserve":
        _check_same_frame(config, trained.config)
        config = dataclasses.replace(config, pool_base=trained.config.pool)
    model = DualEncoder(config, seed, sigmoid)
    _transplant(model, trained)
    return model


def _trained(config: ModelConfig, weights: Path, sigmoid: bool) -> DualEncoder:
    """The model that weights belong to, with the head that it was trained with."""
    run = weights / "final" if (weights / "final" / CONFIG).exists() else weights
    if (run / CONFIG).exists():
        trained = load(run)
        require(
            config.pool_init == "fresh" or trained.config.pool_init == "fresh",
            f"model.pool_init: {weights} has a head that was swapped in itself; use the weights it started from",
        )
        return trained
    named, parts = weights / "open_clip_config.json", None
    if named.exists():
        content = json.loads(named.read_text(encoding="utf-8"))
        parts = complete_open_clip(content.get("model_cfg", content), weights.name, content.get("preprocess_cfg") or {})
    elif config.name is not None:
        import open_clip

        known = open_clip.get_model_config(config.name)
        parts = from_open_clip(known, config.name) if known else None
    image = config.image
    if named.exists() and parts is not None:
        image = dataclasses.replace(image, norm=parts.image.norm, mean=parts.image.mean, std=parts.image.std)
    own = dataclasses.replace(
        config, pool=parts.pool if parts else config.pool, image=image, pool_init="fresh", pool_base=None, weights=None
    )
    trained = DualEncoder(own, sigmoid=sigmoid)
    load_open_clip_state_dict(trained, read_weights(weights, config.allow_pickle))
    return trained


def _check_same_frame(config: ModelConfig, trained: ModelConfig) -> None:
    """What stands around the head is as it was in training."""
    for name in ("norm", "mean", "std", "projection"):
        now, then = getattr(config.image, name), getattr(trained.image, name)
        require(
            now == then,
            f"model.pool_init: preserve: model.image.{name} is {now}, but the weights were trained with {then}; set it",
        )


def _transplant(model: DualEncoder, trained: DualEncoder) -> None:
    """Gives `model` the values of `trained` wherever they share a parameter, and its head's as far as that lives on.

    Raises:
        ConfigError: parameters that have no counterpart, or another shape; the first is named.
    """
    expected, graft = model.state_dict(), model.image.graft
    keep_head = graft is not None or model.config.pooling == trained.config.pooling
    found: StateDict = {}
    for name, value in trained.state_dict().items():
        fits = name in expected and expected[name].shape == value.shape
        if name.startswith(_HEAD):
            if keep_head:
                found[_HEAD + (graft.prefix if graft else "") + name.removeprefix(_HEAD)] = value
        elif name == _PROJECTION and graft:
            found[name] = _widened(value, graft.columns, model.image.pool.out_dim)
        elif name == _PROJECTION and not fits and not keep_head:
            LOG.info("the projection starts anew: the new head's output has another width than the trained one's")
        elif fits or not name.startswith(_OPTIONAL):
            found[name] = value
    for name, value in found.items():
        if name not in expected:
            raise ConfigError(f"model.weights: {name!r} has no place in this model; is it of another architecture?")
        if expected[name].shape != value.shape:
            raise ConfigError(
                f"model.weights: {name!r} has shape {tuple(value.shape)}, the model's is {tuple(expected[name].shape)}"
            )
    missing = [n for n in expected if n not in found and not n.startswith((_HEAD, _PROJECTION, *_OPTIONAL))]
    if missing:
        raise ConfigError(f"model.weights: nothing for {missing[0]!r} ({len(missing)} missing)")
    model.load_state_dict(found, strict=False)


def _widened(weight: Float[Tensor, "embed base"], columns: slice, width: int) -> Float[Tensor, "embed out"]:
    """A projection of the columns of a wider embedding; the other columns count for nothing yet."""
    wide = weight.new_zeros(len(weight), width)
    wide[:, columns] = weight
    return wide
