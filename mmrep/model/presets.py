"""open_clip's model configs as ours: trunk, text tower, embedding width."""

import dataclasses
import difflib
from typing import Any

from mmrep.config.checks import ConfigError
from mmrep.config.model import ImageConfig, ModelConfig, TextConfig

_NATIVE_TRUNK = "vit_base_patch16_clip_224"
"""timm's CLIP ViT; its arguments make it any of open_clip's native ones."""

_PLAIN_VISION = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout"),
    *("no_ln_pre", "pool_type", "final_ln_after_pool", "output_tokens"),
    *("timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"),
    *("timm_drop", "timm_drop_path"),
}
"""Fields of open_clip's vision_cfg that are understood here; others must be empty."""


def complete(config: ModelConfig) -> ModelConfig:
    """The config with everything in place that its `name` stands for; `name` itself is kept as a label.

    Raises:
        ConfigError: no such open_clip model, or one with parts that are not supported, named.
    """
    if config.name is None or config.image.trunk is not None:
        return config
    import open_clip

    named = open_clip.get_model_config(config.name)
    if named is None:
        near = difflib.get_close_matches(config.name, open_clip.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"model.name: open_clip has no model {config.name!r}{hint}")
    parts = from_open_clip(named, config.name)
    image = dataclasses.replace(
        config.image,
        trunk=parts.image.trunk,
        args={**parts.image.args, **config.image.args},
        projection=config.image.projection and parts.image.projection,
    )
    given = {f.name: getattr(config.text, f.name) for f in dataclasses.fields(TextConfig)}
    given = {name: value for name, value in given.items() if value is not None and name != "args"}
    text = dataclasses.replace(parts.text, **given, args={**parts.text.args, **config.text.args})
    return dataclasses.replace(config, image=image, text=text, embed_dim=config.embed_dim or parts.embed_dim)


def from_open_clip(named: dict[str, Any], name: str) -> ModelConfig:
    """An open_clip model config (`embed_dim`, `vision_cfg`, `text_cfg`) as ours, pooling included.

    Raises:
        ConfigError: parts that are not supported, named.
    """
    vision, quick_gelu = dict(named["vision_cfg"]), bool(named.get("quick_gelu", False))
    if named.get("multimodal_cfg"):
        raise ConfigError(f"model {name!r} has a multi-modal decoder, which is not supported")
    odd = sorted(key for key, value in vision.items() if key not in _PLAIN_VISION and value)
    if odd:
        raise ConfigError(f"model {name!r}: vision_cfg {', '.join(odd)} not supported")
    if isinstance(vision.get("layers"), list):
        raise ConfigError(f"model {name!r} has a ResNet image tower; a trunk has to give patch tokens")
    text = dict(named["text_cfg"])
    tokenizer = text.pop("hf_tokenizer_name", None)
    if tokenizer or text.get("hf_model_name"):
        odd_part = text.get("hf_model_name") or tokenizer
        raise ConfigError(
            f"model {name!r} reads text with {odd_part!r}; only open_clip's text tower and CLIP's BPE are supported"
        )
    for key in ("tokenizer_kwargs", "tokenizer_mode"):
        if text.pop(key, None):
            raise ConfigError(f"model {name!r}: text_cfg {key} not supported")
    image = _timm_image(vision) if vision.get("timm_model_name") else _native_image(vision, quick_gelu)
    fields = {f.name for f in dataclasses.fields(TextConfig)} - {"args"}
    args = {key: value for key, value in text.items() if key not in fields}
    if quick_gelu:
        args["quick_gelu"] = True
    defaults = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    given = {key: text[key] for key in fields & set(text)}
    pool = _pool_of(vision)
    return ModelConfig(
        name=name,
        pool=pool,
        embed_dim=named["embed_dim"],
        image=image,
        text=TextConfig(**{**defaults, **given}, args=args),
    )


def _pool_of(vision: dict[str, Any]) -> str:
    if vision.get("timm_model_name"):
        names = {"token": "cls", "avg": "avg", "map": "map", "": "map", "max": "max"}
        pool = vision.get("timm_pool", "avg")
        if pool not in names:
            raise ConfigError(f"open_clip's timm_pool {pool!r} is not supported")
        return names[pool]
    return {"tok": "cls", "avg": "avg"}[vision.get("pool_type", "tok")]


def _native_image(vision: dict[str, Any], quick_gelu: bool) -> ImageConfig:
    width = vision.get("width", 768)
    args: dict[str, Any] = {
        "img_size": vision.get("image_size", 224),
        "patch_size": vision.get("patch_size", 16),
        "embed_dim": width,
        "depth": vision.get("layers", 12),
        "num_heads": width // vision.get("head_width", 64),
        "mlp_ratio": vision.get("mlp_ratio", 4.0),
    }
    if vision.get("ls_init_value") is not None:
        args["init_values"] = vision["ls_init_value"]
    if vision.get("no_ln_pre"):
        raise ConfigError("open_clip's vision_cfg no_ln_pre is not supported")
    if quick_gelu:
        args["act_layer"] = "quick_gelu"
    return ImageConfig(
        trunk=_NATIVE_TRUNK,
        args=args,
        norm="after" if vision.get("final_ln_after_pool") else "before",
        patch_dropout=vision.get("patch_dropout", 0.0),
    )


def _timm_image(vision: dict[str, Any]) -> ImageConfig:
    pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if proj not in ("linear", "", "none", None):
        raise ConfigError(f"open_clip's timm_proj {proj!r} is not supported")
    # Without a linear projection of its own, open_clip lets timm build the head: avg then norms after pooling.
    after = proj != "linear" and pool in ("avg", "max")
    return ImageConfig(
        trunk=vision["timm_model_name"],
        norm="after" if after else "before",
        projection=proj != "none",
        projection_bias=not proj or bool(vision.get("timm_proj_bias")),
    )
