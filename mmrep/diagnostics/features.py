"""Statistics of a trunk's activations, measured by hooks: the tokens' variance over depth, and dead units."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from timm.layers import GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from mmrep.config.checks import ConfigError
from mmrep.model.dual_encoder import DualEncoder

ImageBatches = Iterable[UInt8[Tensor, "_ 3 _ _"] | Float[Tensor, "_ 3 _ _"]]
"""Batches of images as `encode_image` takes them, of any sizes."""

_HALVES = ("attention", "mlp")


class Meter:
    """A measurement by hooks on a trunk's blocks. `watch` sets and removes the hooks."""

    def __init__(self, model: DualEncoder) -> None:
        self.prefix = model.image.prefix
        self.blocks: list[Any] = list(model.image.trunk.blocks)

    def hooks(self) -> Iterable[RemovableHandle]:
        """Set the hooks and yield their handles."""
        raise NotImplementedError(f"{type(self).__name__} has to define hooks()")


@torch.inference_mode()
def watch(model: DualEncoder, batches: ImageBatches, meters: Sequence[Meter]) -> None:
    """Run the trunk once over all images, in fp32 and with all patches, with the hooks of every meter.

    Args:
        model: in evaluation mode.
        batches: images as `encode_image` takes them.
        meters: meters of this model.
    """
    with ExitStack() as stack:
        for meter in meters:
            for handle in meter.hooks():
                stack.callback(handle.remove)
        for images in batches:
            model.image.tokens(images.to(model.device))


class Variance(NamedTuple):
    """Variance of patch tokens after the embedding and after each half-block.

    Attributes:
        points: `embedding`, then `block I attention` and `block I mlp` for each block, after their residual additions.
        spatial: variance over the patches of an image, channel by channel; mean over channels and images.
        channel: variance over the channels of a token; mean over tokens and images.
        spatial_share: `spatial` divided by the mean square of all values at this point. It is 1 for white noise and 0
            for equal patches, and does not depend on the scale of the tokens.
        channel_share: `channel` divided by the same.
    """

    points: list[str]
    spatial: list[float]
    channel: list[float]
    spatial_share: list[float]
    channel_share: list[float]


def token_variance(patches: Float[Tensor, "batch patches width"]) -> tuple[float, float, float]:
    """Return spatial variance, channel variance (both unbiased) and mean square of tokens."""
    x = patches.float()
    means = torch.stack([x.var(1).mean(), x.var(2).mean(), x.square().mean()])
    spatial, channel, square = means.tolist()
    return spatial, channel, square


class VarianceMeter(Meter):
    """Spatial and channel variance of the residual stream (Park & Kim, arXiv 2202.06709, figure 9).

    This follows their notebook: no class and register tokens, unbiased variance over the patches of an image for each
    channel, mean over channels and images, in evaluation mode, after each residual addition. The shares are added,
    since the norm of the residual stream grows with depth.

    Raises:
        ConfigError: blocks that do not add attention and MLP one after the other, each to its un-normed input; fewer
            than two patches.
    """

    def __init__(self, model: DualEncoder) -> None:
        super().__init__(model)
        for i, block in enumerate(self.blocks):
            if type(block) not in (Block, EvaBlock):
                raise ConfigError(
                    f"variance over depth: block {i} of the trunk is a {type(block).__name__}; expected timm's Block "
                    "or EvaBlock, whose half-blocks are known"
                )
        if model.image.patches < 2:
            raise ConfigError("variance over depth: expected at least 2 patches an image, got 1; take a larger size")
        self.points = ["embedding", *(f"block {i} {half}" for i in range(len(self.blocks)) for half in _HALVES)]
        self._sums = [[0.0, 0.0, 0.0] for _ in self.points]
        self._images = 0

    def hooks(self) -> Iterable[RemovableHandle]:
        yield self.blocks[0].register_forward_pre_hook(lambda _, args: self._add(0, args[0]))
        for i, block in enumerate(self.blocks):
            # The input of the second norm is the stream after the attention's residual addition.
            yield block.norm2.register_forward_pre_hook(lambda _, args, at=2 * i + 1: self._add(at, args[0]))
            yield block.register_forward_hook(lambda _, __, out, at=2 * i + 2: self._add(at, out))

    def _add(self, point: int, tokens: Tensor) -> None:
        for i, mean in enumerate(token_variance(tokens[:, self.prefix :])):
            self._sums[point][i] += len(tokens) * mean
        self._images += len(tokens) if point == 0 else 0

    def result(self) -> Variance:
        """Return means over all images.

        Raises:
            ConfigError: there were no images.
        """
        if self._images == 0:
            raise ConfigError("variance over depth: no images were given")
        spatial, channel, square = ([sums[i] / self._images for sums in self._sums] for i in range(3))
        return Variance(
            self.points,
            spatial,
            channel,
            [_share(value, of) for value, of in zip(spatial, square, strict=True)],
            [_share(value, of) for value, of in zip(channel, square, strict=True)],
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


class DeadUnits(NamedTuple):
    """Hidden units of the MLPs, block by block.

    Attributes:
        off_share: share of unit × token pre-activations that are ≤ 0; one half for inputs that are symmetric about 0.
        dead: number of units whose pre-activation is ≤ 0 on every token.
        units: number of units.
        tokens: number of tokens, with class and register tokens.
        overall_off_share: `off_share` over all blocks.
        overall_dead_share: dead units over all units.
    """

    off_share: list[float]
    dead: list[int]
    units: list[int]
    tokens: int
    overall_off_share: float
    overall_dead_share: float


class DeadUnitMeter(Meter):
    """Units of the MLPs that are off: the input of the activation function is ≤ 0, where GELU passes almost nothing.

    In gated MLPs (SwiGLU) this is the gate's pre-activation. All tokens count, also class and register tokens.

    Raises:
        ConfigError: an MLP of another kind.
    """

    def __init__(self, model: DualEncoder) -> None:
        super().__init__(model)
        for i, block in enumerate(self.blocks):
            mlp = getattr(block, "mlp", None)
            if not isinstance(mlp, Mlp | GluMlp | SwiGLU):
                raise ConfigError(
                    f"dead units: block {i} of the trunk ({type(block).__name__}) has no MLP whose pre-activations are "
                    f"known: expected timm's Mlp, GluMlp or SwiGLU, got {type(mlp).__name__}"
                )
        self._off: list[Tensor | int] = [0 for _ in self.blocks]
        self._tokens = 0

    def hooks(self) -> Iterable[RemovableHandle]:
        for i, block in enumerate(self.blocks):
            yield block.mlp.act.register_forward_pre_hook(lambda _, args, at=i: self._add(at, args[0]))

    def _add(self, block: int, values: Float[Tensor, "batch tokens units"]) -> None:
        self._off[block] = self._off[block] + (values <= 0).sum((0, 1))
        self._tokens += values.shape[0] * values.shape[1] if block == 0 else 0

    def result(self) -> DeadUnits:
        """Return counts over all images.

        Raises:
            ConfigError: there were no images.
        """
        if self._tokens == 0:
            raise ConfigError("dead units: no images were given")
        off = [torch.as_tensor(counts) for counts in self._off]
        total, dead = [int(counts.sum()) for counts in off], [int((counts == self._tokens).sum()) for counts in off]
        units = [len(counts) for counts in off]
        shares = [count / (self._tokens * width) for count, width in zip(total, units, strict=True)]
        overall = sum(total) / (self._tokens * sum(units))
        return DeadUnits(shares, dead, units, self._tokens, overall, sum(dead) / sum(units))
