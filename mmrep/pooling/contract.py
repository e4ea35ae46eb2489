"""The interface of a pooling head: `Tokens` in, `Pooled` out."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmrep.config.checks import ConfigError


class Tokens(NamedTuple):
    """Output tokens of a trunk.

    Attributes:
        prefix: class token (first, where the trunk has one) and register tokens.
        patches: patch tokens, row by row.
        grid: rows and columns of the whole patch grid.
        index: positions of the kept patches under patch dropout, ascending; None when all patches are there.
        stages: patch tokens of earlier blocks before the final norm, one tensor for each stage that the head reads.
    """

    prefix: Float[Tensor, "batch prefix width"]
    patches: Float[Tensor, "batch patches width"]
    grid: tuple[int, int]
    index: Int64[Tensor, "batch patches"] | None = None  # type: ignore[assignment]  # hides tuple.index, which is not used
    stages: tuple[Float[Tensor, "batch patches width"], ...] = ()


class Pooled(NamedTuple):
    """The output of a head.

    Attributes:
        embedding: the image embedding, before projection.
        auxiliary: further embeddings for the loss. Heads return them in training mode only.
    """

    embedding: Float[Tensor, "batch out"]
    auxiliary: tuple[Float[Tensor, "batch out"], ...] = ()


class PoolingHead(nn.Module):
    """Base class of all heads: `head(tokens: Tokens) -> Pooled`.

    A subclass defines `pool(tokens)` and, if it has arguments, `__init__(dim, num_heads, args)`.
    `mmrep.register_pool` makes it known by name.

    Args:
        dim: width of the tokens.
        num_heads: attention heads of the trunk, or None where it has none.
        args: the head's dataclass of arguments.

    Attributes:
        dim: width of the tokens.
        out_dim: width of the embedding.
        auxiliary_dims: widths of the auxiliary embeddings.
        num_stages: number of earlier depths of the trunk that the head reads besides the last one.
        needs_class_token: whether the first prefix token must be a class token.
        needs_grid: whether the head reads the patch grid, and so cannot be used with patch dropout.
        invariant: whether the result is independent of the order of the patches.
    """

    needs_class_token = False
    needs_grid = False
    invariant = True
    num_stages = 0
    auxiliary_dims: tuple[int, ...] = ()

    def __init__(self, dim: int, num_heads: int | None = None, args: object = None) -> None:  # noqa: ARG002  # for subclasses
        super().__init__()
        if dim < 1:
            raise ConfigError(f"pool dim: expected a width ≥ 1, got {dim}")
        self.dim = dim
        self.out_dim = dim

    def forward(self, tokens: Tokens) -> Pooled:
        """Pool the tokens.

        Raises:
            ValueError: the tokens' width is not the head's, there are no patches, the class token is missing,
                or patches were dropped and the head needs the grid.
        """
        name = type(self).__name__
        if tokens.patches.ndim != 3 or tokens.patches.shape[-1] != self.dim or tokens.patches.shape[1] == 0:
            shape = tuple(tokens.patches.shape)
            raise ValueError(f"{name}: expected patches of shape (batch, ≥1, {self.dim}), got {shape}")
        if self.needs_class_token and tokens.prefix.shape[1] == 0:
            raise ValueError(f"{name}: expected a class token as the first prefix token, got none")
        if self.needs_grid and tokens.index is not None:
            raise ValueError(f"{name}: needs the whole patch grid and can't be used with patch dropout")
        if len(tokens.stages) != self.num_stages:
            raise ValueError(
                f"{name}: expected the tokens of {self.num_stages} earlier stages, got {len(tokens.stages)}"
            )
        pooled = self.pool(tokens)
        return pooled if isinstance(pooled, Pooled) else Pooled(pooled)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"] | Pooled:
        """Return the embedding, or a `Pooled` with auxiliary embeddings."""
        raise NotImplementedError(f"{type(self).__name__} has to define pool(tokens)")

    def no_weight_decay(self) -> set[str]:
        """Return the names of own parameters without weight decay. Vectors never decay and need not be named."""
        return set()

    def lr_scales(self) -> dict[str, float]:
        """Return learning rates of own parameters relative to the optimiser's, by name, where they differ."""
        return {}


def mean_dtype(x: Tensor) -> torch.dtype:
    """Return the type to accumulate in: fp32, or fp64 for fp64 input."""
    return torch.promote_types(x.dtype, torch.float32)


def bounded(x: Float[Tensor, " count"], bound: float) -> Float[Tensor, " count"]:
    """Clamp x to [-bound, bound] but keep the gradient of x, so that a value past a bound can return."""
    return x.clamp(-bound, bound).detach() + (x - x.detach())
