"""The dual encoder: image tower, text tower and temperature."""

import dataclasses
import math
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmrep.batch import Batch
from mmrep.config.checks import require
from mmrep.config.model import ModelConfig
from mmrep.config.training import Precision
from mmrep.model.image_encoder import ImageEncoder, Images
from mmrep.model.presets import with_preprocessing
from mmrep.model.text_encoder import ClipTokenizer, TextEncoder
from mmrep.pixels import Preprocess


class Embeddings(NamedTuple):
    """The embeddings of a batch, in fp32 and of unit length.

    Attributes:
        image: image embeddings.
        text: text embeddings.
        logit_scale: the temperature factor (not its logarithm).
        logit_bias: bias of the sigmoid loss; None under InfoNCE.
        auxiliary: further image embeddings of the head.
    """

    image: Float[Tensor, "batch embed"]
    text: Float[Tensor, "batch embed"]
    logit_scale: Float[Tensor, "1"]
    logit_bias: Float[Tensor, "1"] | None = None
    auxiliary: tuple[Float[Tensor, "batch embed"], ...] = ()


class DualEncoder(nn.Module):
    """A CLIP-style model, made by `mmrep.create_model` or `mmrep.load`. Training calls `forward(batch)` only.

    Args:
        config: a complete config (`mmrep.model.presets.complete`).
        seed: seed of the initial values, which depend on it and on the parameter's name.
        sigmoid: the model has a logit bias, for the sigmoid loss.
        head_seed: seed of the initial values of the head and the image projection. By default `seed`.

    Attributes:
        tokenizer: turns texts into token ids.
        precision: `bf16` runs the towers under autocast.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, sigmoid: bool = False, head_seed: int | None = None) -> None:
        super().__init__()
        config = dataclasses.replace(config, image=with_preprocessing(config.image))
        self.config = config
        self.image = ImageEncoder(config.image, config.pooling, config.embed_dim or 0, seed, config.base, head_seed)
        self.text = TextEncoder(config.text, self.image.embed_dim, seed)
        scale = config.logit_scale or (10.0 if sigmoid else 1 / 0.07)
        # The shape is (1,), since FSDP2 refuses parameters without dimensions.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.logit_bias = nn.Parameter(torch.tensor([config.logit_bias])) if sigmoid else None
        self.tokenizer = ClipTokenizer(self.text.context_length, cut=self.text.cuttable)
        self.precision: Precision = "fp32"

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.logit_scale.device

    @property
    def preprocess(self) -> Preprocess:
        """The transform of a Pillow picture to a normalised float tensor (3, H, W), as open_clip's for evaluation."""
        image = self.config.image
        assert image.mean is not None and image.std is not None, "set by with_preprocessing"
        return Preprocess(self.image.fit, image.mean, image.std)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def encode_image(self, images: Images, normalize: bool = True) -> Float[Tensor, "batch embed"]:
        """Return image embeddings in fp32.

        Args:
            images: uint8 pixels, or floats from `preprocess`.
            normalize: normalise to unit length (open_clip's default is False).
        """
        with self._autocast():
            x = self.image(images).embedding.float()
        return F.normalize(x, dim=-1) if normalize else x

    def encode_text(
        self, tokens: Int64[Tensor, "batch length"], normalize: bool = True
    ) -> Float[Tensor, "batch embed"]:
        """Return text embeddings in fp32.

        Args:
            tokens: token ids from the tokenizer, cut or not.
            normalize: normalise to unit length (open_clip's default is False).
        """
        with self._autocast():
            x = self.text(tokens).float()
        return F.normalize(x, dim=-1) if normalize else x

    def forward(self, batch: Batch) -> Embeddings:
        """Return the embeddings of a batch of pairs."""
        with self._autocast():
            pooled = self.image(batch.images, batch.kept)
            text = self.text(batch.tokens)
        image, text, *auxiliary = (F.normalize(x.float(), dim=-1) for x in (pooled.embedding, text, *pooled.auxiliary))
        return Embeddings(image, text, self.logit_scale.exp(), self.logit_bias, tuple(auxiliary))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, in both towers."""
        self.image.grad_checkpointing = enable
        self.text.tower.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the parameters with two or more dimensions that must not decay."""
        names = {f"image.trunk.{name}" for name in getattr(self.image.trunk, "no_weight_decay", set)()}
        names |= {f"image.pool.{name}" for name in self.image.pool.no_weight_decay()}
        return names | {f"text.tower.{name}" for name in self.text.tower.no_weight_decay()}

    def lr_scales(self) -> dict[str, float]:
        """Return the factors on the learning rate of parameters whose factor is not 1."""
        return {f"image.pool.{name}": scale for name, scale in self.image.pool.lr_scales().items()}

    @torch.no_grad()
    def clamp_logit_scale(self, largest: float) -> None:
        """Clamp the temperature factor to [1, largest]. CLIP clamps it to 100 after every step."""
        require(largest > 1, f"max_logit_scale: expected a value > 1, got {largest}")
        self.logit_scale.clamp_(0, math.log(largest))
