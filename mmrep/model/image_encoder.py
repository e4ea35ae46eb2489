"""The image tower: timm trunk, final LayerNorm, pooling head and projection."""

from typing import Any

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from mmrep.config.checks import ConfigError, require
from mmrep.config.model import ImageConfig
from mmrep.config.pooling import PoolConfig
from mmrep.model.presets import with_preprocessing
from mmrep.model.seeding import seeded
from mmrep.model.trunk import build_trunk, check_stages, has_class_token, image_size, num_heads, stage_blocks, walk
from mmrep.pixels import Fit
from mmrep.pooling import Pooled, Tokens
from mmrep.pooling.preserve import graft
from mmrep.pooling.registry import build_configured

Images = UInt8[Tensor, "batch 3 rows columns"] | Float[Tensor, "batch 3 height width"]


class ImageEncoder(nn.Module):
    """The image tower: images to embeddings.

    The encoder separates class and register tokens from patches and owns the final LayerNorm, which is the same for all
    heads and stands before or after pooling.

    Args:
        config: trunk, norm, projection and preprocessing.
        pool: the pooling head.
        embed_dim: width of the embedding; ignored without projection.
        seed: seed of the initial values.
        base: the head that weights loaded later were trained with; `pool` is grafted onto it.
        head_seed: seed of the initial values of the head and the projection. By default `seed`.

    Raises:
        ConfigError: an unknown or unsupported trunk, or a head that does not fit the trunk.
    """

    def __init__(
        self,
        config: ImageConfig,
        pool: PoolConfig,
        embed_dim: int,
        seed: int,
        base: PoolConfig | None = None,
        head_seed: int | None = None,
    ) -> None:
        super().__init__()
        require(config.trunk is not None, "model.image.trunk: expected a timm model's name")
        self.trunk: Any
        self.trunk, self.norm = build_trunk(str(config.trunk), config.args, config.pretrained, seed)
        self.norm_after = config.norm == "after"
        config = with_preprocessing(config)
        self._resizing = (config.resize_mode or "shortest", config.interpolation or "bicubic")
        self.size = image_size(self.trunk)
        self.grid: tuple[int, int] = tuple(self.trunk.patch_embed.grid_size)
        self.width: int = self.trunk.embed_dim
        self.prefix: int = self.trunk.num_prefix_tokens
        self.grad_checkpointing = False
        head_seed = seed if head_seed is None else head_seed
        with seeded(head_seed, "image.pool"):
            heads = num_heads(self.trunk)
            self.graft = graft(pool, base, self.width, heads) if base else None
            self.pool = self.graft.head if self.graft else build_configured(pool, self.width, heads)
        self._check_fit(config, pool)
        self.stage_blocks = stage_blocks(len(self.trunk.blocks), self.pool.num_stages)
        self.projection: nn.Module = nn.Identity()
        if config.projection:
            with seeded(head_seed, "image.projection"):
                self.projection = _projection(self.pool.out_dim, embed_dim, config.projection_bias)
        self.embed_dim = embed_dim if config.projection else self.pool.out_dim
        self.auxiliary_projections = nn.ModuleList()
        for i, width in enumerate(self.pool.auxiliary_dims):
            with seeded(head_seed, f"image.auxiliary_projections.{i}"):
                self.auxiliary_projections.append(_projection(width, embed_dim, config.projection_bias))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(1, 3, 1, 1) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def _check_fit(self, config: ImageConfig, pool: PoolConfig) -> None:
        if self.graft and not config.projection and self.graft.columns != slice(0, self.pool.out_dim):
            raise ConfigError(
                f"model.pool_init: preserve is impossible here: {pool.name!r} has another width than the trained head, "
                "and no projection follows whose new columns could start at zero; set model.image.projection to true"
            )
        if self.pool.needs_class_token and not has_class_token(self.trunk):
            raise ConfigError(f"model.pool {pool.name!r} needs a class token, and trunk {config.trunk!r} has none")
        if self.pool.needs_grid and config.patch_dropout > 0:
            raise ConfigError(
                f"model.pool {pool.name!r} needs the whole patch grid: set model.image.patch_dropout to 0"
            )
        if self.pool.num_stages:
            check_stages(self.trunk)
        if self.norm_after and self.pool.out_dim != self.width:
            raise ConfigError(
                f"model.image.norm 'after' needs a head as wide as the trunk ({self.width}); "
                f"{pool.name!r} has width {self.pool.out_dim}"
            )
        if self.pool.auxiliary_dims and not config.projection:
            raise ConfigError(
                f"model.pool {pool.name!r} trains a second embedding, which needs a projection: set "
                "model.image.projection to true, or the head's distill to false"
            )

    @property
    def patches(self) -> int:
        """Number of patches in the whole grid."""
        return self.grid[0] * self.grid[1]

    @property
    def fit(self) -> Fit:
        """The resizing of a whole picture to this tower's size."""
        return Fit(*self.size, *self._resizing)

    @property
    def dynamic(self) -> bool:
        """True if the trunk takes images of other sizes than its own."""
        return bool(getattr(self.trunk, "dynamic_img_size", False))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of patches in images of a size.

        Raises:
            ConfigError: the trunk does not take images of this size.
        """
        if size == self.size:
            return self.grid
        patch = self.trunk.patch_embed.patch_size
        require(
            self.dynamic,
            f"images of {size}: the trunk takes {self.size} only; model.image.args: {{dynamic_img_size: true}} lets it "
            "interpolate its position embedding",
        )
        require(
            size[0] % patch[0] == 0 and size[1] % patch[1] == 0,
            f"images of {size}: expected multiples of the patch size {tuple(patch)}",
        )
        return size[0] // patch[0], size[1] // patch[1]

    def tokens(self, images: Images, kept: Int64[Tensor, "batch kept"] | None = None) -> Tokens:
        """Return the trunk's tokens for a head, normed if the norm stands before pooling.

        Args:
            images: uint8 pixels, or floats normalised by `preprocess`.
            kept: positions of the patches to keep.

        Raises:
            ValueError: images of another size than the trunk's.
        """
        if images.shape[1] != 3 or (tuple(images.shape[2:]) != self.size and not self.dynamic):
            raise ValueError(
                f"expected images of shape (batch, 3, {self.size[0]}, {self.size[1]}), got {tuple(images.shape)}"
            )
        grid = self.grid_of((images.shape[2], images.shape[3]))
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype).sub_(self.mean).div_(self.std)
        x, earlier = walk(self.trunk, images, kept, self.grad_checkpointing and self.training, self.stage_blocks)
        if not self.norm_after:
            x = self.norm(x)
        stages = tuple(stage[:, self.prefix :] for stage in earlier)
        return Tokens(x[:, : self.prefix], x[:, self.prefix :], grid, kept, stages)

    def forward(self, images: Images, kept: Int64[Tensor, "batch kept"] | None = None) -> Pooled:
        """Return embeddings, not normalised to unit length. The arguments are those of `tokens`."""
        pooled = self.pool(self.tokens(images, kept))
        # Heads return auxiliary embeddings in training mode only.
        auxiliary = (
            projection(self.norm(x) if self.norm_after else x)
            for projection, x in zip(self.auxiliary_projections, pooled.auxiliary, strict=self.training)
        )
        return Pooled(self.project(pooled.embedding), tuple(auxiliary))

    def project(self, pooled: Float[Tensor, "batch out"]) -> Float[Tensor, "batch embed"]:
        """Apply what follows the head: the final LayerNorm, if it stands after pooling, and the projection."""
        return self.projection(self.norm(pooled) if self.norm_after else pooled)


def _projection(width: int, embed_dim: int, bias: bool) -> nn.Linear:
    projection = nn.Linear(width, embed_dim, bias=bias)
    nn.init.normal_(projection.weight, std=width**-0.5)
    if bias:
        nn.init.zeros_(projection.bias)
    return projection
