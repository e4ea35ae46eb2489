"""Pooling by attention: `map`."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.pooling.contract import PoolingHead, Tokens


class AttentionPool(PoolingHead):
    """Multi-head attention pooling with one learned query and an MLP (SigLIP's MAP head; Zhai et al., arXiv
    2106.04560).

    timm's AttentionPoolLatent, so that weights move both ways unchanged.

    Raises:
        ConfigError: `num_heads` is missing or does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int | None = None, mlp_ratio: float = 4.0) -> None:
        super().__init__(dim)
        from timm.layers import AttentionPoolLatent

        if num_heads is None or dim % num_heads:
            raise ConfigError(f"pool 'map': num_heads must divide the trunk's width {dim}, got {num_heads}")
        self.attn_pool = AttentionPoolLatent(
            dim, num_heads=num_heads, mlp_ratio=mlp_ratio, norm_layer=partial(nn.LayerNorm, eps=1e-6)
        )

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return self.attn_pool(tokens.patches)

    def no_weight_decay(self) -> set[str]:
        return {"attn_pool.latent"}
