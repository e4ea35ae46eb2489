"""Conversion of weights from and to open_clip, for its native CLIP ViTs and its TimmModel towers."""

import re
from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmrep.config.checks import ConfigError, quoted
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.text_encoder import text_fields

_NATIVE_NAMES = (
    ("patch_embed.proj.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("norm.", "ln_post."),
    ("blocks.#.norm1.", "transformer.resblocks.#.ln_1."),
    ("blocks.#.norm2.", "transformer.resblocks.#.ln_2."),
    ("blocks.#.attn.qkv.", "transformer.resblocks.#.attn.in_proj_"),
    ("blocks.#.attn.proj.", "transformer.resblocks.#.attn.out_proj."),
    ("blocks.#.mlp.fc1.", "transformer.resblocks.#.mlp.c_fc."),
    ("blocks.#.mlp.fc2.", "transformer.resblocks.#.mlp.c_proj."),
    ("blocks.#.ls1.", "transformer.resblocks.#.ls_1."),
    ("blocks.#.ls2.", "transformer.resblocks.#.ls_2."),
)
"""timm's name of each part of a ViT, and that of open_clip's native ViT. # stands for the number of a block."""
OPENAI_SIZES = frozenset({"input_resolution", "context_length", "vocab_size"})
NO_WEIGHTS = ("attn_mask", "text.attn_mask", *OPENAI_SIZES)
"""Entries of older state dicts that are not weights: a buffer that the tower makes itself, and OpenAI's three sizes."""
HEAD = "image.pool."

StateDict = dict[str, Tensor]


def load_open_clip_state_dict(model: DualEncoder, state_dict: StateDict, new_head: bool = False) -> None:
    """Load the weights of an open_clip model. Every tensor must have a place, and every parameter a tensor.

    Args:
        model: a model of the same architecture.
        state_dict: weights of open_clip's CLIP or CustomTextCLIP.
        new_head: the model has another head than the weights. It keeps its head, and that of the weights is left out.

    Raises:
        ConfigError: a name or shape that does not match; the message shows the first.
    """
    ours = _image_from_open_clip(state_dict) | _text_from_open_clip(state_dict)
    for name in ("logit_scale", "logit_bias"):
        if name in state_dict:
            ours[name] = state_dict[name].reshape(1)
    if new_head:
        ours = {name: value for name, value in ours.items() if not name.startswith(HEAD)}
        if model.logit_bias is None:
            ours.pop("logit_bias", None)  # the loss may be another one, like the head
    place_weights(model, ours, "open_clip weights", optional=(HEAD, "logit_bias") if new_head else ())


def place_weights(model: DualEncoder, found: StateDict, what: str, optional: tuple[str, ...] = ()) -> None:
    """Load tensors into a model after checking that names and shapes match.

    Args:
        model: the model.
        found: tensors by our parameter names.
        what: the start of the messages, which says whose weights they are.
        optional: prefixes of parameters that may keep their values.

    Raises:
        ConfigError: a tensor without a place, of another shape, or missing; the message shows the first.
    """
    expected = model.state_dict()
    for name, value in found.items():
        if name not in expected:
            raise ConfigError(f"{what}: {quoted(name)} has no place in this model; is it of another architecture?")
        if value.shape != expected[name].shape:
            raise ConfigError(
                f"{what}: {name!r} has shape {tuple(value.shape)}, the model's is {tuple(expected[name].shape)}"
            )
    missing = [name for name in expected if name not in found and not name.startswith(optional or "\0")]
    if missing:
        raise ConfigError(f"{what}: nothing for {missing[0]!r} ({len(missing)} missing)")
    model.load_state_dict(found, strict=False)


def _image_from_open_clip(state_dict: StateDict) -> StateDict:
    """Return the weights of the image tower by our names."""
    visual = {name.removeprefix("visual."): value for name, value in state_dict.items() if name.startswith("visual.")}
    native = "class_embedding" in visual
    places = (
        ("norm.", "image.norm."),
        ("fc_norm.", "image.norm."),
        ("head.proj.", "image.projection."),
        ("head.", "image.projection."),
        ("attn_pool.", f"{HEAD}attn_pool."),
        ("", "image.trunk."),
    )
    ours = {}
    for name, value in visual.items():
        if native and name == "class_embedding":
            name, value = "cls_token", value[None, None]
        elif native and name == "positional_embedding":
            name, value = "pos_embed", value[None]
        elif native and name == "proj":
            name, value = "head.weight", value.T
        elif native:
            name = _renamed(name, [(theirs, timms) for timms, theirs in _NATIVE_NAMES])
        ours[_renamed(name.removeprefix("trunk."), places)] = value
    return ours


def _renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a name with the first of the old prefixes that fits replaced by the new one."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    for old, new in pairs:
        if number:
            old, new = (prefix.replace("#", number[0]) for prefix in (old, new))
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _text_from_open_clip(state_dict: StateDict) -> StateDict:
    """Return the weights of the text tower by our names."""
    custom = any(name.startswith("text.") for name in state_dict)
    found = {}
    for name, value in state_dict.items():
        if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias", *NO_WEIGHTS):
            found["text.tower." + (name.removeprefix("text.") if custom else name)] = value
    return found


def to_open_clip(model: DualEncoder) -> tuple[dict[str, Any], StateDict]:
    """Return open_clip's model config and state dict for a model.

    Raises:
        ConfigError: open_clip can't express the model; the message says why.
    """
    if model.image.graft is not None and model.config.pooling != model.config.base:
        raise ConfigError(
            f"open_clip can't express a head swapped onto another: {model.config.pooling.label!r} onto "
            f"{model.config.pool_base!r} (model.pool_init: preserve)"
        )
    native_reason = _native_obstacle(model)
    timm_reason = _timm_obstacle(model) if native_reason else ""
    if native_reason and timm_reason:
        raise ConfigError(
            f"open_clip can't express this model: its native ViT: {native_reason}; its TimmModel: {timm_reason}"
        )
    vision_cfg, visual = _to_timm(model) if native_reason else _to_native(model)
    text_cfg, quick_gelu = text_fields(model.config.text)
    config: dict[str, Any] = {"embed_dim": model.image.embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    if native_reason:
        config["custom_text"] = True
    if quick_gelu:
        config["quick_gelu"] = True
    text_prefix = "text." if native_reason else ""
    state = {f"visual.{name}": value for name, value in visual.items()}
    state |= {text_prefix + name: value for name, value in model.text.tower.state_dict().items()}
    state["logit_scale"] = model.logit_scale.reshape(())
    if model.logit_bias is not None:
        state["logit_bias"] = model.logit_bias.reshape(())
        config["init_logit_bias"] = 0.0
    return config, {name: value.detach().contiguous().cpu() for name, value in state.items()}


def _native_obstacle(model: DualEncoder) -> str:
    """Return why open_clip's native ViT can't be this image tower; empty if it can."""
    trunk: Any = model.image.trunk
    config = model.config.image
    name = model.config.pooling.name
    checks = {
        f"it pools by cls or avg only, not {name}": name in ("cls", "avg"),
        "the trunk is no plain timm VisionTransformer": type(trunk) is VisionTransformer,
        "it has exactly one prefix token, a class token": model.image.prefix == 1
        and getattr(trunk, "cls_token", None) is not None,
        "it norms before the blocks": isinstance(getattr(trunk, "norm_pre", None), nn.LayerNorm),
        "its patch embedding has no bias": getattr(trunk.patch_embed.proj, "bias", None) is None,
        "its LayerNorm epsilon is 1e-5": getattr(model.image.norm, "eps", None) == 1e-5,
        "it has a projection without bias": config.projection and not config.projection_bias,
        "its position embedding covers the class token": not getattr(trunk, "no_embed_class", True),
        "both towers have one activation": (config.args.get("act_layer") == "quick_gelu")
        == bool(model.config.text.args.get("quick_gelu")),
        "its images and patches are square": len({*model.image.size}) == 1,
    }
    return "; ".join(reason for reason, holds in checks.items() if not holds)


def _to_native(model: DualEncoder) -> tuple[dict[str, Any], StateDict]:
    image = model.image
    trunk: Any = image.trunk
    heads = trunk.blocks[0].attn.num_heads
    cfg: dict[str, Any] = {
        "image_size": image.size[0],
        "patch_size": image.size[0] // image.grid[0],
        "width": image.width,
        "layers": len(trunk.blocks),
        "head_width": image.width // heads,
        "mlp_ratio": trunk.blocks[0].mlp.fc1.out_features / image.width,
        "pool_type": {"cls": "tok", "avg": "avg"}[model.config.pooling.name],
        "final_ln_after_pool": image.norm_after,
    }
    if "ls1.gamma" in trunk.blocks[0].state_dict():
        cfg["ls_init_value"] = 1e-5
    state = {}
    for name, value in trunk.state_dict().items():
        if name == "cls_token":
            state["class_embedding"] = value[0, 0]
        elif name == "pos_embed":
            state["positional_embedding"] = value[0]
        else:
            state[_renamed(name, _NATIVE_NAMES)] = value
    state |= {f"ln_post.{name}": value for name, value in image.norm.state_dict().items()}
    state["proj"] = image.projection.weight.T
    return cfg, state


def _timm_obstacle(model: DualEncoder) -> str:
    """Return why open_clip's TimmModel can't be this image tower; empty if it can."""
    image, config = model.image, model.config.image
    where = (model.config.pooling.name, config.norm)
    allowed = {("cls", "before"), ("avg", "before"), ("avg", "after"), ("map", "before")}
    bare = {**config.args}
    bare.pop("img_size", None)
    native_size = _native_size(str(config.trunk))
    checks = {
        f"it has no pool {where[0]!r} with norm {where[1]!r}": where in allowed,
        f"it takes no trunk arguments ({', '.join(bare)})": not bare,
        f"it has the trunk's native image size {native_size}, not {image.size}": image.size == native_size,
        "it needs a projection": config.projection,
        "it projects an average of normed tokens without bias": where != ("avg", "before")
        or not config.projection_bias,
    }
    return "; ".join(reason for reason, holds in checks.items() if not holds)


def _native_size(trunk: str) -> tuple[int, int]:
    import timm

    cfg = timm.get_pretrained_cfg(trunk)
    return tuple(cfg.input_size[1:]) if cfg else (224, 224)


def _to_timm(model: DualEncoder) -> tuple[dict[str, Any], StateDict]:
    image, config = model.image, model.config.image
    pool = model.config.pooling.name
    linear = (pool, config.norm) in (("cls", "before"), ("avg", "before")) and not config.projection_bias
    cfg = {
        "timm_model_name": config.trunk,
        "timm_model_pretrained": False,
        "timm_pool": {"cls": "token"}.get(pool, pool),
        "timm_proj": "linear" if linear else "",
        "image_size": image.size[0],
    }
    state = {f"trunk.{name}": value for name, value in image.trunk.state_dict().items()}
    norm = "fc_norm" if image.norm_after else "norm"
    state |= {f"trunk.{norm}.{name}": value for name, value in image.norm.state_dict().items()}
    state |= {f"trunk.{name}": value for name, value in image.pool.state_dict().items()}
    weight = image.projection.weight
    if linear:
        state["head.proj.weight"] = weight
    else:
        bias = image.projection.bias
        state["trunk.head.weight"] = weight
        # timm's own classifier always has a bias. A projection without one becomes a classifier with zeros.
        state["trunk.head.bias"] = torch.zeros(len(weight)) if bias is None else bias
    return cfg, state
