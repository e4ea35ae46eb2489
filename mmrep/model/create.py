"""New dual encoders, with initial values or from trained weights."""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPTextCfg
from torch import Tensor

from mmrep.config.checks import ConfigError, require
from mmrep.config.model import ModelConfig
from mmrep.config.pooling import PoolConfig
from mmrep.config.tree import changed_fields
from mmrep.model.convert import HEAD, OPENAI_SIZES, StateDict, load_open_clip_state_dict, place_weights
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import MODEL_CONFIG, OPEN_CLIP_CONFIG, config_from_dict, load, read_weights
from mmrep.model.presets import complete, from_open_clip
from mmrep.model.proof import TOLERANCE
from mmrep.model.trunk import num_heads, walk

_PROJECTION, _AUXILIARY = "image.projection.weight", "image.auxiliary_projections."
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(CLIPTextCfg)} | {"quick_gelu": False}
"""Values of the fields that a config leaves out. mlp_ratio is the same for timm's ViTs."""
LOG = logging.getLogger("mmrep")


def create_model(
    name: str | None = None,
    pool: str | dict[str, Any] | PoolConfig = "avg",
    seed: int = 0,
    loss: str = "infonce",
    **fields: Any,
) -> DualEncoder:
    """Return a new dual encoder.

    Args:
        name: an open_clip model (`ViT-B-16`). Without one, `image` and `text` describe the towers.
        pool: a head's name, or `{"name": "ggem", "args": {"groups": 12}}`.
        seed: seed of the initial values. Models with one seed start equal wherever they share a parameter.
        loss: `sigmoid` adds a logit bias.
        fields: further fields of `ModelConfig`; `image` and `text` may be dicts of their fields.

    Raises:
        ConfigError: an unknown name or argument, or parts that do not fit together.
    """
    if isinstance(pool, PoolConfig):
        pool = {"name": pool.name, "args": pool.args}
    config = config_from_dict({"name": name, "pool": pool, **fields})
    return build_model(config, seed, sigmoid=loss == "sigmoid")


def build_model(config: ModelConfig, seed: int, sigmoid: bool, head_seed: int | None = None) -> DualEncoder:
    """Return a dual encoder from its config, with `config.weights` loaded if given; see `DualEncoder` for the seeds.

    Raises:
        ConfigError: as in `create_model`, or weights that do not fit, or a head that can't replace the trained one
            under `pool_init: preserve`.
    """
    config = complete(config)
    if config.weights is None:
        return DualEncoder(config, seed, sigmoid, head_seed)
    trained = _trained(config, Path(config.weights), sigmoid)
    if config.pool_init == "preserve":
        config = dataclasses.replace(config, pool_base=trained.config.pool)
    model = DualEncoder(_with_trained_preprocessing(config, trained.config), seed, sigmoid, head_seed)
    _transplant(model, trained)
    _prove_equal(model, trained)
    return model


def _with_trained_preprocessing(config: ModelConfig, trained: ModelConfig) -> ModelConfig:
    """Return the config with the weights' mean, std, resize mode and interpolation, where the config has none.

    Raises:
        ConfigError: the config has others.
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
    """Return the model that weights belong to, with the head that it was trained with."""
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
    # A file of weights does not say which activation they were trained with, but OpenAI's files have these entries.
    quick = config.text.args.get("quick_gelu") and config.image.args.get("act_layer") == "quick_gelu"
    require(
        quick or not OPENAI_SIZES.issubset(state),
        f"model.weights {weights}: these are OpenAI's, trained with QuickGELU: choose a model.name that ends in "
        "-quickgelu",
    )
    load_open_clip_state_dict(trained, state, new_head=not preserve)
    return trained


@torch.inference_mode()
def _prove_equal(model: DualEncoder, trained: DualEncoder) -> None:
    """Compare the outputs of both models for an image of noise and a text.

    Under `pool_init: preserve` these are the image embeddings. With a new head they are the trunk's tokens before the
    final norm, since a recipe may change the norm's place (`model.image.norm`); a change is logged.

    Raises:
        ConfigError: the outputs differ; the message names the options that differ.
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
    # Fields come before entries of `args`. A field left out in one config equals the default in the other.
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
    """Copy the values of `trained` into `model`: the towers, and the head if the new head contains the trained one.

    Raises:
        ConfigError: a parameter without a counterpart or of another shape; the message shows the first.
    """
    expected, graft = model.state_dict(), model.image.graft
    heads = num_heads(model.image.trunk)
    same = model.config.pooling.meaning(heads) == trained.config.pooling.meaning(heads)
    keep_head = graft is not None or (same and trained.image.graft is None)
    found: StateDict = {}
    for name, value in trained.state_dict().items():
        fits = name in expected and expected[name].shape == value.shape
        if name.startswith(HEAD):
            if keep_head:
                found[HEAD + (graft.prefix if graft else "") + name.removeprefix(HEAD)] = value
        elif name == _PROJECTION and graft:
            # The new columns start at zero, so that the embedding stays the same.
            found[name] = value.new_zeros(len(value), model.image.pool.out_dim)
            found[name][:, graft.columns] = value
        elif name == _PROJECTION and not fits and not keep_head:
            LOG.info("the projection starts fresh: the new head has another width than the trained one")
        elif name.startswith(_AUXILIARY):
            if keep_head:
                place, _, rest = name.removeprefix(_AUXILIARY).partition(".")
                found[f"{_AUXILIARY}{int(place) + (graft.auxiliary if graft else 0)}.{rest}"] = value
        elif fits or name != "logit_bias":
            found[name] = value
    place_weights(model, found, "model.weights", optional=(HEAD, _PROJECTION, _AUXILIARY, "logit_bias"))
