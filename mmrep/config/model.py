"""What a dual encoder is made of: trunk, pooling, text tower, embedding width."""

import typing
from dataclasses import dataclass, field
from typing import Any

from mmrep.config.checks import above, at_least, one_of, require, within
from mmrep.config.pooling import Norm, PoolConfig, PoolInit


@dataclass(frozen=True)
class ImageConfig:
    """The image tower.

    Attributes:
        trunk: a timm model name; None takes the one of the named model.
        args: arguments of the timm model (img_size, patch_size, embed_dim, depth, num_heads, ...).
        norm: final LayerNorm `before` pooling (on the tokens) or `after` it (on the embedding).
        projection: whether a linear layer maps the pooled embedding to `embed_dim`; without it the head's width is
            the embedding's.
        projection_bias: whether that layer has a bias.
        pretrained: whether timm loads its pretrained weights into the trunk.
        patch_dropout: share of the patches left out in training.
        mean: per-channel mean subtracted from images in [0, 1].
        std: per-channel standard deviation that images are divided by.
    """

    trunk: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    norm: Norm = "before"
    projection: bool = True
    projection_bias: bool = False
    pretrained: bool = False
    patch_dropout: float = 0.0
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        one_of("model.image.norm", self.norm, typing.get_args(Norm))
        within("model.image.patch_dropout", self.patch_dropout, 0, 0.95)
        for value in self.std:
            above("model.image.std", value, 0)


@dataclass(frozen=True)
class TextConfig:
    """The text tower (open_clip's transformer); None takes the value of the named model.

    Attributes:
        context_length: longest text in tokens, start and end included.
        vocab_size: entries of the token embedding.
        width: token width.
        heads: attention heads.
        layers: transformer blocks.
        args: further fields of open_clip's text config (pool_type, no_causal_mask, ...).
    """

    context_length: int | None = None
    vocab_size: int | None = None
    width: int | None = None
    heads: int | None = None
    layers: int | None = None
    args: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("model.text.context_length", self.context_length, 3)
        for name in ("vocab_size", "width", "heads", "layers"):
            at_least(f"model.text.{name}", getattr(self, name), 1)
        if self.width is not None and self.heads is not None:
            require(
                self.width % self.heads == 0,
                f"model.text.heads: expected a divisor of width {self.width}, got {self.heads}",
            )


@dataclass(frozen=True)
class ModelConfig:
    """A dual encoder.

    Attributes:
        name: an open_clip model name that fills what is left out below; None builds from `image` and `text` alone.
        pool: the pooling head: `avg`, or `{name: ggem, args: {groups: 12}}`.
        pool_init: `fresh`, or `preserve`: the model equals at first the one that `weights` holds, whatever its head.
        pool_base: under `preserve`, the head that `weights` were trained with; None takes it from there.
        embed_dim: width of the shared embedding; None takes the named model's.
        image: the image tower.
        text: the text tower.
        logit_scale: initial temperature factor (exp of the parameter); None: 1/0.07 for infonce, 10 for sigmoid.
        logit_bias: initial bias of the sigmoid loss.
        weights: where to start from: a run or its final/, or open_clip weights (a local file or folder); None starts
            from scratch.
        allow_pickle: allow `weights` to be a `.pt`/`.bin` file, read with weights_only=True.
    """

    name: str | None = None
    pool: str | dict[str, Any] = "cls"
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
        at_least("model.embed_dim", self.embed_dim, 1)
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
        if self.name is None and self.image.trunk is not None:
            missing = [f"model.text.{n}" for n in ("width", "heads", "layers") if getattr(self.text, n) is None]
            missing += ["model.embed_dim"] if self.embed_dim is None and self.image.projection else []
            require(not missing, f"{', '.join(missing)}: needed, since no model.name is given to take them from")

    @property
    def pooling(self) -> PoolConfig:
        """The pooling head, in its long form."""
        return PoolConfig.parse(self.pool, "model.pool")

    @property
    def base(self) -> PoolConfig | None:
        """The head that is preserved, in its long form."""
        return None if self.pool_base is None else PoolConfig.parse(self.pool_base, "model.pool_base")
