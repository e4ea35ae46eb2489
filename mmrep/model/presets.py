"""Conversion of open_clip's model and preprocessing configs to ours. What mmrep lacks is refused by name."""

import dataclasses
import math
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transform import PreprocessCfg

from mmrep.config.checks import ConfigError, hint, quoted, require
from mmrep.config.model import ImageConfig, ModelConfig, TextConfig
from mmrep.config.pooling import Norm
from mmrep.config.schema import read_fields
from mmrep.model.trunk import timm_head

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_NATIVE_TRUNK = "vit_base_patch16_clip_224"
"""timm's CLIP ViT. With arguments it becomes any of open_clip's native ViTs."""

_NATIVE_VALUES: dict[str, tuple[Any, ...]] = {
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), (False,)
    ),
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "act_kwargs": (None,),
    "norm_kwargs": (None,),
    "pool_type": ("tok", "avg"),
}
"""Fields of a native ViT that may have these values only."""
_NATIVE_FREE = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "patch_dropout"),
    "final_ln_after_pool",
    "output_tokens",  # changes what open_clip's forward pass returns, not the embedding
    *("attn_pooler_queries", "attn_pooler_heads"),  # read under attentional_pool only
}
_TIMM_FREE = {
    *("timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop_path", "patch_dropout", "image_size"),
    "timm_model_pretrained",  # open_clip starts from ImageNet weights only if no CLIP weights follow
    "output_tokens",
}
_TOP_FREE = {
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"),
    "custom_text",  # changes the names of the weights; both are read
    "nonscalar_logit_scale",  # changes the shape of the logit scale; both are read
    "output_dict",  # changes what open_clip's forward pass returns, not the embedding
    "cast_dtype",  # the precision that open_clip computes in, which its caller chooses
}
_TEXT_FIELDS = {field.name for field in dataclasses.fields(TextConfig)} - {"args"}


def complete(config: ModelConfig) -> ModelConfig:
    """Return the config with the parts that its `name` stands for filled in. `name` itself stays as a label.

    Raises:
        ConfigError: no such open_clip model, a model with unsupported parts, or both a name and a trunk.
    """
    if config.name is None:
        return config
    import open_clip

    require(
        config.image.trunk is None,
        f"model.name {quoted(config.name)} and model.image.trunk {quoted(config.image.trunk)} each stand for a model: "
        "give one of them",
    )
    named = open_clip.get_model_config(config.name)
    if named is None:
        near = hint(config.name, open_clip.list_models(), 3)
        raise ConfigError(f"model.name: open_clip has no model {quoted(config.name)}{near}")
    parts = from_open_clip(named, f"model.name {config.name}", config.name)
    image = dataclasses.replace(
        config.image,
        trunk=parts.image.trunk,
        args={**parts.image.args, **config.image.args},
        projection=config.image.projection and parts.image.projection,
    )
    given = {name: getattr(config.text, name) for name in _TEXT_FIELDS if getattr(config.text, name) is not None}
    text = dataclasses.replace(parts.text, **given, args={**parts.text.args, **config.text.args})
    return dataclasses.replace(config, image=image, text=text, embed_dim=config.embed_dim or parts.embed_dim)


def with_preprocessing(image: ImageConfig) -> ImageConfig:
    """Return the config with mean, std, resize mode and interpolation filled in.

    A field that is None gets the pretrained trunk's value if its weights are loaded, else CLIP's.
    """
    values: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD, "resize_mode": "shortest", "interpolation": "bicubic"}
    if image.pretrained:
        import timm

        trained = timm.get_pretrained_cfg(str(image.trunk))
        if trained is not None:
            interpolation = trained.interpolation if trained.interpolation in ("bicubic", "bilinear") else "bicubic"
            values |= {"mean": tuple(trained.mean), "std": tuple(trained.std), "interpolation": interpolation}
            if trained.crop_mode == "squash":
                values["resize_mode"] = "squash"
    missing = {name: value for name, value in values.items() if getattr(image, name) is None}
    return dataclasses.replace(image, **missing) if missing else image


def from_open_clip(named: Any, where: str, name: str | None = None, preprocess: Any = None) -> ModelConfig:
    """Convert an open_clip model config (`embed_dim`, `vision_cfg`, `text_cfg`) to ours, pooling included.

    Every field is either honoured, or must have the only value that is implemented here, or is refused.

    Args:
        named: open_clip's `model_cfg`.
        where: start of the messages: the file or the model.
        name: label of the result.
        preprocess: open_clip's `preprocess_cfg`.

    Raises:
        ConfigError: a field of the wrong type, or an unsupported one; the message names it.
    """
    require(isinstance(named, dict), f"{where}: expected keys and values, got {quoted(named)}")
    for key in ("vision_cfg", "text_cfg"):
        require(
            isinstance(named.get(key), dict), f"{where}: {key}: expected keys and values, got {quoted(named.get(key))}"
        )
    unknown = sorted(key for key, value in named.items() if key not in _TOP_FREE and value)
    require(not unknown, f"{where}: {', '.join(unknown)} not supported")
    width = named.get("embed_dim")
    require(type(width) is int, f"{where}: embed_dim: expected int, got {quoted(width)}")
    quick_gelu = _flag(named, "quick_gelu", where)
    scale = named.get("init_logit_scale")
    require(
        scale is None or (isinstance(scale, int | float) and abs(scale) < 50),
        f"{where}: init_logit_scale: expected a logarithm below 50, got {quoted(scale)}",
    )
    # open_clip's own configs have empty fields. All but timm_proj then get their default.
    given = {key: value for key, value in named["vision_cfg"].items() if value is not None}
    if "timm_proj" in named["vision_cfg"]:
        given["timm_proj"] = named["vision_cfg"]["timm_proj"] or ""
    vision = read_fields(CLIPVisionCfg, given, f"{where}: vision_cfg")
    try:
        if vision.timm_model_name:
            image, pool = _timm_image(vision, given, f"{where}: vision_cfg")
        else:
            image, pool = _native_image(vision, given, f"{where}: vision_cfg", quick_gelu)
        image = dataclasses.replace(image, **_preprocessing(preprocess or {}, vision.image_size, where))
        text = _text(named["text_cfg"], f"{where}: text_cfg", quick_gelu)
        return ModelConfig(
            name=name,
            pool=pool,
            embed_dim=width,
            image=image,
            text=text,
            logit_scale=None if scale is None else math.exp(scale),
        )
    except ConfigError as error:
        raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error


def _flag(fields: dict[str, Any], key: str, where: str) -> bool:
    value = fields.get(key, False)
    require(isinstance(value, bool), f"{where}: {key}: expected true or false, got {quoted(value)}")
    return bool(value)


def _check_fields(given: dict[str, Any], where: str, free: set[str], values: dict[str, tuple[Any, ...]]) -> None:
    """Refuse values that are not implemented: others than `values` lists, or than the default of a field not `free`."""
    for key, value in given.items():
        if key in values:
            allowed = ", ".join(map(repr, values[key]))
            require(value in values[key], f"{where}: {key} {quoted(value)} is not supported (only {allowed})")
        elif key not in free:
            default = next(field.default for field in dataclasses.fields(CLIPVisionCfg) if field.name == key)
            require(value == default, f"{where}: {key} {quoted(value)} is not supported with this image tower")


def _native_image(
    vision: CLIPVisionCfg, given: dict[str, Any], where: str, quick_gelu: bool
) -> tuple[ImageConfig, str]:
    if not isinstance(vision.layers, int):
        raise ConfigError(
            f"{where}: layers {quoted(vision.layers)}: a ResNet; the image tower must return patch tokens"
        )
    # open_clip ignores the fields of TimmModel here.
    timms = {field.name for field in dataclasses.fields(CLIPVisionCfg) if field.name.startswith("timm_")}
    _check_fields(given, where, _NATIVE_FREE | timms, _NATIVE_VALUES)
    require(
        1 <= vision.head_width <= vision.width,
        f"{where}: head_width: expected from 1 to width {quoted(vision.width)}, got {quoted(vision.head_width)}",
    )
    args: dict[str, Any] = {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.width,
        "depth": vision.layers,
        "num_heads": vision.width // vision.head_width,
        "mlp_ratio": vision.mlp_ratio,
    }
    if vision.ls_init_value is not None:
        args["init_values"] = vision.ls_init_value
    if quick_gelu:
        args["act_layer"] = "quick_gelu"
    norm: Norm = "after" if vision.final_ln_after_pool else "before"
    image = ImageConfig(trunk=_NATIVE_TRUNK, args=args, norm=norm, patch_dropout=vision.patch_dropout)
    return image, {"tok": "cls", "avg": "avg"}[vision.pool_type]


def _timm_image(vision: CLIPVisionCfg, given: dict[str, Any], where: str) -> tuple[ImageConfig, Any]:
    """Return image tower and pool of open_clip's TimmModel, read off the timm model that it would build."""
    # open_clip ignores the fields of its native ViT here.
    _check_fields(given, where, _TIMM_FREE | _NATIVE_FREE | _NATIVE_VALUES.keys(), {"timm_drop": (0.0,)})
    require(
        vision.timm_proj in ("linear", "", "none"),
        f"{where}: timm_proj {quoted(vision.timm_proj)} is not supported (only 'linear', 'none' and '')",
    )
    linear = vision.timm_proj == "linear"
    pool, norm, size = timm_head(vision.timm_model_name, vision.timm_pool, keep_default=linear, where=where)
    require(
        _pair(vision.image_size) == size,
        f"{where}: image_size {quoted(vision.image_size)}: {vision.timm_model_name} takes {size}, and open_clip can't "
        "change that",
    )
    args = {} if vision.timm_drop_path is None else {"drop_path_rate": vision.timm_drop_path}
    image = ImageConfig(
        trunk=vision.timm_model_name,
        args=args,
        norm=norm,
        patch_dropout=vision.patch_dropout,
        projection=vision.timm_proj != "none",
        # Without a linear projection of its own, open_clip projects with timm's classifier, which has a bias.
        projection_bias=vision.timm_proj_bias if linear else True,
    )
    return image, pool


def _text(given: dict[str, Any], where: str, quick_gelu: bool) -> TextConfig:
    text = read_fields(CLIPTextCfg, given, where)
    odd = text.hf_model_name or text.hf_tokenizer_name
    require(not odd, f"{where}: {quoted(odd)}: only open_clip's text tower and CLIP's BPE are supported")
    for key in ("tokenizer_kwargs", "tokenizer_mode"):
        require(not getattr(text, key), f"{where}: {key} {quoted(getattr(text, key))} is not supported")
    # The tower is open_clip's own and takes all other fields as they are.
    unused = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "output_tokens"}
    args = {
        key: value for key, value in given.items() if key not in _TEXT_FIELDS | unused and not key.startswith("hf_")
    }
    if quick_gelu:
        args["quick_gelu"] = True
    return TextConfig(**{name: getattr(text, name) for name in _TEXT_FIELDS}, args=args)


def _preprocessing(given: Any, image_size: int | tuple[int, int], where: str) -> dict[str, Any]:
    """Convert a preprocess_cfg to fields of ImageConfig."""
    where = f"{where}: preprocess_cfg"
    require(isinstance(given, dict), f"{where}: expected keys and values, got {quoted(given)}")
    given = {key: value for key, value in given.items() if value is not None}
    for key in ("mean", "std"):
        values = given.get(key, [0.5, 0.5, 0.5])
        plain = isinstance(values, list | tuple) and len(values) == 3
        require(
            plain and all(type(value) in (int, float) for value in values),
            f"{where}: {key}: expected three numbers, got {quoted(values)}",
        )
    mode = given.pop("mode", "RGB")
    require(mode == "RGB", f"{where}: mode {quoted(mode)} is not supported (only 'RGB')")
    cfg = read_fields(PreprocessCfg, given, where)
    require(
        "size" not in given or _pair(cfg.size) == _pair(image_size),
        f"{where}: size {quoted(cfg.size)} is not the model's image_size {quoted(image_size)}",
    )
    require(
        cfg.resize_mode != "longest" or cfg.fill_color == 0,
        f"{where}: fill_color {quoted(cfg.fill_color)} is not supported (only 0)",
    )
    fields = {name: getattr(cfg, name) for name in ("mean", "std", "interpolation", "resize_mode")}
    return fields | {name: tuple(float(value) for value in fields[name]) for name in ("mean", "std")}


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
