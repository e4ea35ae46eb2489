"""Weights to and from open_clip: native CLIP ViTs and TimmModel towers."""

import re
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmrep.config.checks import ConfigError, quoted
from mmrep.model.dual_encoder import DualEncoder

_NATIVE_NAMES = (
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^blocks\.(\d+)\.norm(\d)\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^blocks\.(\d+)\.ls(\d)\.gamma$", r"transformer.resblocks.\1.ls_\2.gamma"),
)
_TIMM_NAMES = (
    (r"^conv1\.", "patch_embed.proj."),
    (r"^ln_pre\.", "norm_pre."),
    (r"^ln_post\.", "norm."),
    (r"^transformer\.resblocks\.(\d+)\.ln_(\d)\.", r"blocks.\1.norm\2."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"^transformer\.resblocks\.(\d+)\.attn\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_fc\.", r"blocks.\1.mlp.fc1."),
    (r"^transformer\.resblocks\.(\d+)\.mlp\.c_proj\.", r"blocks.\1.mlp.fc2."),
    (r"^transformer\.resblocks\.(\d+)\.ls_(\d)\.gamma$", r"blocks.\1.ls\2.gamma"),
)
OPENAI_SIZES = frozenset({"input_resolution", "context_length", "vocab_size"})
NO_WEIGHTS = ("attn_mask", "text.attn_mask", *OPENAI_SIZES)
"""Entries of older state dicts that are no weights: a buffer that the tower makes itself, and OpenAI's three sizes."""
_HEAD = "image.pool."

StateDict = dict[str, Tensor]


def load_open_clip_state_dict(model: DualEncoder, state_dict: StateDict, new_head: bool = False) -> None:
    """Load an open_clip model's weights. Every tensor has to have its place, and every part its tensor.

    Args:
        model: of the same architecture.
        state_dict: of open_clip's CLIP or CustomTextCLIP.
        new_head: whether the model has another head than the weights: its head keeps its values, and the weights' is
            left out.

    Raises:
        ConfigError: names or shapes that do not match, the first of them named.
    """
    ours = _image_from_open_clip(state_dict) | _text_from_open_clip(state_dict)
    for name in ("logit_scale", "logit_bias"):
        if name in state_dict:
            ours[name] = state_dict[name].reshape(1)
    if new_head:
        ours = {name: value for name, value in ours.items() if not name.startswith(_HEAD)}
        if model.logit_bias is None:
            ours.pop("logit_bias", None)  # the loss is chosen anew, like the head
    place_weights(model, ours, "open_clip weights", optional=(_HEAD, "logit_bias") if new_head else ())


def place_weights(model: DualEncoder, found: StateDict, what: str, optional: tuple[str, ...] = ()) -> None:
    """Load tensors by our names after checking that names and shapes match.

    Args:
        model: gets the values.
        found: tensors by parameter name.
        what: the weights, as messages name them.
        optional: prefixes of parameters that may keep their values.

    Raises:
        ConfigError: a tensor without place, of another shape, or missing; the first is named.
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
    visual = {name.removeprefix("visual."): value for name, value in state_dict.items() if name.startswith("visual.")}
    if "class_embedding" in visual:
        flat = _native_to_timm(visual)
    else:
        flat = {name.removeprefix("trunk."): value for name, value in visual.items()}
        flat = {re.sub(r"^head\.(?:proj\.)?", "head.", name): value for name, value in flat.items()}
    places = (
        ("norm.", "image.norm."),
        ("fc_norm.", "image.norm."),
        ("head.", "image.projection."),
        ("attn_pool.", f"{_HEAD}attn_pool."),
    )
    ours = {}
    for name, value in flat.items():
        short, place = next(((s, p) for s, p in places if name.startswith(s)), ("", "image.trunk."))
        ours[place + name.removeprefix(short)] = value
    return ours


def _native_to_timm(visual: StateDict) -> StateDict:
    """Return the weights of open_clip's native ViT under timm's names; the inverse of what `_to_native` does."""
    flat = {}
    for name, value in visual.items():
        if name == "class_embedding":
            flat["cls_token"] = value[None, None]
        elif name == "positional_embedding":
            flat["pos_embed"] = value[None]
        elif name == "proj":
            flat["head.weight"] = value.T
        else:
            for pattern, replacement in _TIMM_NAMES:
                name = re.sub(pattern, replacement, name)
            flat[name] = value
    return flat


def _text_from_open_clip(state_dict: StateDict) -> StateDict:
    custom = any(name.startswith("text.") for name in state_dict)
    found = {}
    for name, value in state_dict.items():
        if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias", *NO_WEIGHTS):
            found["text.tower." + (name.removeprefix("text.") if custom else name)] = value
    return found


def to_open_clip(model: DualEncoder) -> tuple[dict[str, Any], StateDict]:
    """open_clip's model config and state dict for a model that open_clip can express.

    Raises:
        ConfigError: what open_clip has no name for.
    """
    if model.image.graft is not None and model.config.pooling != model.config.base:
        raise ConfigError(
            f"open_clip can't express a head swapped onto another: {model.config.pooling.label!r} onto "
            f"{model.config.pool_base!r} (model.pool_init: preserve)"
        )
    text = model.config.text
    quick_gelu = bool(text.args.get("quick_gelu", False))
    text_cfg = {key: value for key, value in text.args.items() if key != "quick_gelu"}
    for name in ("context_length", "vocab_size", "width", "heads", "layers"):
        if getattr(text, name) is not None:
            text_cfg[name] = getattr(text, name)
    reason = _native_obstacle(model)
    if not reason:
        vision_cfg, visual = _to_native(model)
        prefix = ""
    else:
        timm_reason = _timm_obstacle(model)
        if timm_reason:
            raise ConfigError(
                f"open_clip can't express this model: its native ViT: {reason}; its TimmModel: {timm_reason}"
            )
        vision_cfg, visual = _to_timm(model)
        prefix = "text."
    state = {f"visual.{name}": value for name, value in visual.items()}
    for name, value in model.text.tower.state_dict().items():
        state[prefix + name] = value
    state["logit_scale"] = model.logit_scale.detach().reshape(())
    config: dict[str, Any] = {"embed_dim": model.image.embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    if quick_gelu:
        config["quick_gelu"] = True
    if model.logit_bias is not None:
        state["logit_bias"] = model.logit_bias.detach().reshape(())
        config["init_logit_bias"] = 0.0
    if prefix:
        config["custom_text"] = True
    return config, {name: value.detach().contiguous().cpu() for name, value in state.items()}


def _native_obstacle(model: DualEncoder) -> str:
    """Why open_clip's native ViT can't be this image tower; empty if it can."""
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
            for pattern, replacement in _NATIVE_NAMES:
                name = re.sub(pattern, replacement, name)
            state[name] = value
    state |= {f"ln_post.{name}": value for name, value in image.norm.state_dict().items()}
    state["proj"] = image.projection.weight.T
    return cfg, state


def _timm_obstacle(model: DualEncoder) -> str:
    """Why open_clip's TimmModel can't be this image tower; empty if it can."""
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
        # timm's own classifier always has a bias; ours without one is its with zeros.
        state["trunk.head.bias"] = torch.zeros(len(weight)) if bias is None else bias
    return cfg, state
