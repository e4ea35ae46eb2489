"""The config of a dual encoder: trunk, pooling, text tower, embedding width."""

import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrep.config.checks import ConfigError, above, hint, one_of, quoted, require, within
from mmrep.config.pooling import Norm, PoolConfig, PoolInit

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]

CLIP_VOCABULARY = 49_408
"""Entries of CLIP's byte-pair vocabulary, the only tokenizer so far."""

TRUNK_ARGS = frozenset(
    {
        *("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_kv_heads", "mlp_ratio", "init_values"),
        *("qkv_bias", "qkv_fused", "qk_norm", "proj_bias", "pre_norm", "scale_attn_norm", "scale_mlp_norm"),
        *("class_token", "reg_tokens", "num_reg_tokens", "pos_embed", "no_embed_class", "dynamic_img_size"),
        *("dynamic_img_pad", "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
        *("act_layer", "norm_layer", "swiglu_mlp", "swiglu_align_to", "scale_mlp", "scale_attn_inner", "attn_type"),
        *("attn_only_layer_scale", "use_abs_pos_emb", "use_rot_pos_emb", "rope_type", "rope_grid_offset"),
        *("rope_grid_indexing", "rope_temperature", "rope_rotate_half", "rope_shift_coords", "rope_jitter_coords"),
        *("rope_rescale_coords", "use_post_norm", "use_pre_transformer_norm", "ref_feat_shape"),
        *("use_rel_pos_bias", "use_shared_rel_pos_bias", "rel_pos_type", "rel_pos_dim", "shared_rel_pos"),
        *("depth_token_only", "mlp_ratio_token_only", "local_up_to_layer", "locality_strength", "use_pos_embed"),
    }
)
"""Arguments of timm's models that `model.image.args` may contain: sizes, depths and flags.

timm has other arguments that open files, reach the network or run code (`checkpoint_path` unpickles). Configs come with
models from strangers, so this lists what is allowed, not what is forbidden.
"""

MAX_DEPTH, MAX_SIZE, MAX_PARAMETERS = 1000, 100_000, 2e10
"""Bounds of a config's numbers. A mistyped or hostile one is refused before memory is allocated."""


@dataclass(frozen=True)
class ImageConfig:
    """The image tower.

    Attributes:
        trunk: A timm model name. By default the one of model.name.
        args: Arguments of the timm model (img_size, patch_size, embed_dim, depth, num_heads, ...).
        norm: Place of the final LayerNorm: before pooling (on the tokens) or after it (on the embedding).
        projection: Map the pooled embedding to embed_dim by a linear layer. Without it, the head's width is the
            embedding's.
        projection_bias: Give that layer a bias.
        pretrained: Load timm's pretrained weights into the trunk.
        patch_dropout: Share of the patches to leave out in training.
        mean: Mean of each channel, subtracted from images in [0, 1]. It belongs to the model: by default that of
            model.weights, else of the pretrained trunk, else CLIP's.
        std: Standard deviation of each channel, which images are divided by. Its default is found as that of mean.
        resize_mode: How a whole picture is brought to the model's size: shortest side, then the centre; longest
            side, then black borders; squash ignores its shape. Its default is found as that of mean, else shortest.
        interpolation: Interpolation where a whole picture is resized: bicubic or bilinear. Its default is found as
            that of mean, else bicubic.
    """

    trunk: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    norm: Norm = "before"
    projection: bool = True
    projection_bias: bool = False
    pretrained: bool = False
    patch_dropout: float = 0.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    resize_mode: ResizeMode | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        one_of("model.image.norm", self.norm, typing.get_args(Norm))
        within("model.image.patch_dropout", self.patch_dropout, 0, 0.95)
        for value in self.mean or ():
            within("model.image.mean", value, -1e6, 1e6)
        for value in self.std or ():
            above("model.image.std", value, 0)
        if self.resize_mode is not None:
            one_of("model.image.resize_mode", self.resize_mode, typing.get_args(ResizeMode))
        if self.interpolation is not None:
            one_of("model.image.interpolation", self.interpolation, typing.get_args(Interpolation))
        _check_trunk_args(self.args)


def _check_trunk_args(args: dict[str, Any]) -> None:
    """Raise ConfigError for arguments of a trunk that are not in TRUNK_ARGS, no plain values, or out of bounds."""
    require(isinstance(args, dict), f"model.image.args: expected keys and values, got {quoted(args)}")
    for name, value in args.items():
        where = f"model.image.args.{str(name)[:80]}"
        if name not in TRUNK_ARGS:
            near = hint(name, TRUNK_ARGS) or "; allowed are sizes, depths and flags (docs/models.md)"
            raise ConfigError(f"{where}: not an argument that a trunk may be given{near}")
        parts = value if isinstance(value, list | tuple) else [value]
        for part in parts or [None]:
            require(
                isinstance(part, bool | int | float | str) or (part is None and value is None),
                f"{where}: expected a number, a flag or a name, got {quoted(value)}",
            )
            if isinstance(part, int | float) and not isinstance(part, bool):
                within(where, part, -MAX_SIZE, MAX_SIZE)
    for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads"):
        value = args.get(name, 1)
        sizes = value if isinstance(value, list | tuple) and name.endswith("size") else [value]
        for size in sizes:
            require(
                type(size) is int and 1 <= size <= (MAX_DEPTH if name == "depth" else MAX_SIZE),
                f"model.image.args.{name}: expected a whole number from 1, got {quoted(value)}",
            )
    ratio = args.get("mlp_ratio", 1.0)
    require(
        isinstance(ratio, int | float) and ratio > 0,
        f"model.image.args.mlp_ratio: expected a number > 0, got {quoted(ratio)}",
    )
    _check_parameters("model.image.args", args.get("depth", 1) * (4 + 2 * ratio) * args.get("embed_dim", 1) ** 2)


def _check_parameters(where: str, count: float) -> None:
    require(count <= MAX_PARAMETERS, f"{where}: about {count:.2g} parameters, more than {MAX_PARAMETERS:.0g}")


@dataclass(frozen=True)
class TextConfig:
    """The text tower, open_clip's transformer. What is left out is taken from model.name.

    Attributes:
        context_length: Longest text in tokens, start and end included.
        vocab_size: Entries of the token embedding, at least as many as the tokenizer has.
        width: Token width.
        heads: Attention heads.
        layers: Transformer blocks.
        args: Further fields of open_clip's text config (pool_type, no_causal_mask, ...).
    """

    context_length: int | None = None
    vocab_size: int | None = None
    width: int | None = None
    heads: int | None = None
    layers: int | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("context_length", 3, MAX_SIZE), ("width", 1, MAX_SIZE), ("heads", 1, MAX_SIZE), ("layers", 1, MAX_DEPTH),
        ):  # fmt: skip
            if getattr(self, name) is not None:
                within(f"model.text.{name}", getattr(self, name), least, most)
        if self.vocab_size is not None:
            require(
                CLIP_VOCABULARY <= self.vocab_size <= 100 * CLIP_VOCABULARY,
                f"model.text.vocab_size: expected at least the {CLIP_VOCABULARY} entries of CLIP's tokenizer, "
                f"got {quoted(self.vocab_size)}",
            )
        _check_parameters("model.text", (self.layers or 1) * 12 * (self.width or 1) ** 2)
        if self.width is not None and self.heads is not None:
            require(
                self.width % self.heads == 0,
                f"model.text.heads: expected a divisor of width {self.width}, got {self.heads}",
            )


@dataclass(frozen=True)
class ModelConfig:
    """The dual encoder.

    Attributes:
        name: An open_clip model name. It fills what is left out below.
        pool: The pooling head: avg, or {name: ggem, args: {groups: 12}}. `mmrep pools` lists all.
        pool_init: Initial values of the head. fresh draws them; preserve makes the model initially equal to the one
            that `weights` holds, whatever its head.
        pool_base: The head that `weights` were trained with, for preserve. By default it is taken from there.
        embed_dim: Width of the shared embedding. By default that of model.name.
        image: The image tower.
        text: The text tower.
        logit_scale: Initial temperature factor (exp of the parameter). By default 1/0.07 for infonce and 10 for
            sigmoid.
        logit_bias: Initial bias of the sigmoid loss.
        weights: Weights to start from: a run or its final/, or open_clip weights (a local file or folder). By
            default training starts from scratch.
        allow_pickle: Allow `weights` to be a .pt or .bin file, read with weights_only=True.
    """

    name: str | None = None
    pool: str | dict[str, Any] = "avg"
    pool_init: PoolInit = "fresh"
    pool_base: str | dict[str, Any] | None = None
    embed_dim: int | None = None
    image: ImageConfig = field(default_factory=ImageConfig)
    text: TextConfig = field(default_factory=TextConfig)
    logit_scale: float | None = None
    logit_bias: float = -10.0
    weights: str | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim is not None:
            within("model.embed_dim", self.embed_dim, 1, MAX_SIZE)
        above("model.logit_scale", self.logit_scale, 0)
        PoolConfig.parse(self.pool, "model.pool")
        one_of("model.pool_init", self.pool_init, typing.get_args(PoolInit))
        if self.pool_init == "preserve":
            require(
                self.weights is not None or self.pool_base is not None,
                "model.pool_init: preserve needs model.weights, a trained model to start from",
            )
        else:
            require(self.pool_base is None, "model.pool_base: used under model.pool_init: preserve only")
        if self.image.trunk is not None:
            missing = list(self._missing())
            require(not missing, f"{', '.join(missing)}: needed together with model.image.trunk")

    def _missing(self) -> Iterator[str]:
        """Yield the fields that a model without a name needs and lacks."""
        for name in ("width", "heads", "layers"):
            if getattr(self.text, name) is None:
                yield f"model.text.{name}"
        if self.embed_dim is None and self.image.projection:
            yield "model.embed_dim"

    @property
    def pooling(self) -> PoolConfig:
        """The pooling head as a config."""
        return PoolConfig.parse(self.pool, "model.pool")

    @property
    def base(self) -> PoolConfig | None:
        """The head that is preserved, as a config."""
        return None if self.pool_base is None else PoolConfig.parse(self.pool_base, "model.pool_base")
