"""New dual encoders, from scratch or from trained weights."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from open_clip.model import CLIPTextCfg
from torch import Tensor

from mmrep.config.checks import ConfigError, require
from mmrep.config.model import ModelConfig
from mmrep.config.pooling import PoolConfig
from mmrep.config.tree import changed_fields
from mmrep.model.convert import OPENAI_SIZES, StateDict, load_open_clip_state_dict, place_weights
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import MODEL_CONFIG, OPEN_CLIP_CONFIG, config_from_dict, load, read_weights
from mmrep.model.presets import complete, from_open_clip
from mmrep.model.trunk import num_heads, walk

_HEAD, _PROJECTION = "image.pool.", "image.projection.weight"
_AUXILIARY = "image.auxiliary_projections."
TOLERANCE = 1e-5
"""Largest difference of embeddings of unit length that is taken for rounding."""
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(CLIPTextCfg)} | {"quick_gelu": False}
"""What towers have where a config leaves a field out; mlp_ratio is the same for timm's ViTs."""
LOG = logging.getLogger("mmrep")


def create_model(
    name: str | None = None,
    pool: str | dict[str, Any] | PoolConfig = "avg",
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
        config = dataclasses.replace(config, pool_base=trained.config.pool)
    model = DualEncoder(_with_trained_preprocessing(config, trained.config), seed, sigmoid)
    _transplant(model, trained)
    _prove_equal(model, trained)
    return model


def _with_trained_preprocessing(config: ModelConfig, trained: ModelConfig) -> ModelConfig:
    """Return the config with the weights' mean, std, resize mode and interpolation where it gives none.

    Raises:
        ConfigError: it gives others.
    """
    values = {name: getattr(trained.image, name) for name in ("mean", "std", "resize_mode", "interpolation")}
    for name, value in values.items():
        given = getattr(config.image, name)
        require(
            given is None or given == value,
            f"model.image.{name}: {given}, but model.weights {config.weights} was trained with {value}; leave it out "
            "to take the weights' own",
        )
    return dataclasses.replace(config, image=dataclasses.replace(config.image, **values))


def _trained(config: ModelConfig, weights: Path, sigmoid: bool) -> DualEncoder:
    """The model that weights belong to, with the head that it was trained with."""
    preserve = config.pool_init == "preserve"
    if any((weights / name).exists() for name in (MODEL_CONFIG, f"final/{MODEL_CONFIG}", OPEN_CLIP_CONFIG)):
        trained = load(weights, allow_pickle=config.allow_pickle)
        require(
            not preserve or trained.config.pool_init == "fresh",
            f"model.pool_init: {weights} has a head that was swapped in itself; use the weights it started from",
        )
        heads = num_heads(trained.image.trunk)
        require(
            config.base is None or config.base.meaning(heads) == trained.config.pooling.meaning(heads),
            f"model.pool_base is {config.pool_base!r}, but {weights} was trained with {trained.config.pool!r}",
        )
        return trained
    pool: Any = config.pool
    if preserve:
        pool = config.pool_base
        if pool is None and config.name is not None:
            import open_clip

            known = open_clip.get_model_config(config.name)
            pool = from_open_clip(known, config.name).pool if known else None
        require(
            pool is not None,
            f"model.pool_init: preserve: {weights} does not say what head it was trained with; give model.pool_base",
        )
    own = dataclasses.replace(config, pool=pool, pool_init="fresh", pool_base=None, weights=None)
    trained = DualEncoder(own, sigmoid=sigmoid)
    state = read_weights(weights, config.allow_pickle)
    # Nothing else in a file of weights tells the activation. OpenAI's own files have these entries.
    quick = config.text.args.get("quick_gelu") and config.image.args.get("act_layer") == "quick_gelu"
    require(
        quick or not OPENAI_SIZES.issubset(state),
        f"model.weights {weights}: OpenAI's weights, which were trained with QuickGELU: take a model.name that ends in "
        "-quickgelu",
    )
    load_open_clip_state_dict(trained, state, new_head=not preserve)
    return trained


@torch.inference_mode()
def _prove_equal(model: DualEncoder, trained: DualEncoder) -> None:
    """Compare what both models make of an image of noise and of a text.

    Under `pool_init: preserve` the image embeddings are compared. With a new head the trunks' tokens are, before the
    final norm, whose place (`model.image.norm`) a recipe may change; a change is logged.

    Raises:
        ConfigError: they differ; options that are not the trained one's are named.
    """
    preserve = model.config.pool_init == "preserve"
    changed = _changed_options(model, trained)
    if model.image.grid != trained.image.grid or model.image.size != trained.image.size:
        gap = math.inf
    else:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (1, 3, *trained.image.size), dtype=torch.uint8, generator=generator)
        tokens = trained.tokenizer(["a photo of a cat"])
        outputs = [_outputs(each, images, tokens, preserve) for each in (model, trained)]
        gap = max(_gap(*pair) for pair in zip(*outputs, strict=True))
    if gap > TOLERANCE:
        what = "embeddings" if preserve else "a tower's outputs"
        option = "model.pool_init: preserve" if preserve else f"model.weights {model.config.weights}"
        raise ConfigError(
            f"{option}: {what} differ by {gap:.2g} from the trained model's before any training: "
            f"{'; '.join(changed[:3]) or 'some option of model.image or model.text is another'}"
        )
    if model.image.norm_after != trained.image.norm_after:
        LOG.warning("model.weights: model.image.norm is %s, was %s", model.config.image.norm, trained.config.image.norm)


def _changed_options(model: DualEncoder, trained: DualEncoder) -> list[str]:
    now, then = (
        {name: dataclasses.asdict(getattr(m.config, name)) for name in ("image", "text")} for m in (model, trained)
    )
    # Fields before entries of `args`. What one of them leaves out, and the other has at its default, is no change.
    found = sorted(changed_fields(now, then).items(), key=lambda item: ".args" in item[0])
    return [
        f"model.{key} is {here}, was {there}"
        for key, (here, there) in found
        if None not in (here, there) or _DEFAULTS.get(key.rpartition(".")[2]) not in (here, there)
    ]


def _outputs(model: DualEncoder, images: Tensor, tokens: Tensor, whole: bool) -> tuple[Tensor, Tensor]:
    training = model.training
    model.eval()
    image = model.image
    pixels = images.to(image.mean.dtype).sub(image.mean).div(image.std)
    seen = model.encode_image(images) if whole else walk(image.trunk, pixels)[0]
    text = model.encode_text(tokens)
    model.train(training)
    return seen, text


def _gap(a: Tensor, b: Tensor) -> float:
    """Return the largest difference over the scale of the values (1 for embeddings of unit length)."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) if a.shape == b.shape else math.inf


def _transplant(model: DualEncoder, trained: DualEncoder) -> None:
    """Gives `model` the values of `trained` wherever they share a parameter, and its head's as far as that lives on.

    Raises:
        ConfigError: parameters that have no counterpart, or another shape; the first is named.
    """
    expected, graft = model.state_dict(), model.image.graft
    heads = num_heads(model.image.trunk)
    same = model.config.pooling.meaning(heads) == trained.config.pooling.meaning(heads)
    keep_head = graft is not None or (same and trained.image.graft is None)
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
        elif name.startswith(_AUXILIARY):
            if keep_head:
                place, _, rest = name.removeprefix(_AUXILIARY).partition(".")
                found[f"{_AUXILIARY}{int(place) + (graft.auxiliary if graft else 0)}.{rest}"] = value
        elif fits or name != "logit_bias":
            found[name] = value
    place_weights(model, found, "model.weights", optional=(_HEAD, _PROJECTION, _AUXILIARY, "logit_bias"))


def _widened(weight: Float[Tensor, "embed base"], columns: slice, width: int) -> Float[Tensor, "embed out"]:
    """A projection of the columns of a wider embedding; the other columns count for nothing yet."""
    wide = weight.new_zeros(len(weight), width)
    wide[:, columns] = weight
    return wide
