"""Class attention pooling: the block, and `cap`, its pool with one class token."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.pooling.contract import Pooled, PoolingHead, Tokens


class ClassAttention(nn.Module):
    """Class tokens attend over themselves and the patches, then pass an FFN (CaiT; Touvron et al., arXiv 2103.17239,
    sec. 3; MMCAP, eq. 1-2):

        z ← z + W_o · softmax(W_q LN(z) · (W_k LN(u))ᵀ / √d) · W_v LN(u),    u = [tokens, patches]
        z ← z + FFN(LN(z))

    The patches are read only; CaiT's LayerScale, made for deep stacks, is left out. 4c² parameters in the attention,
    2·ffn_ratio·c² in the FFN.

    Args:
        dim: width c of the tokens.
        num_heads: attention heads, a divisor of `dim`.
        ffn_ratio: hidden width of the FFN over `dim`; 0: no FFN, eq. 1-2 alone.
    """

    def __init__(self, dim: int, num_heads: int, ffn_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        # The norm has a bias, so that these need none.
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        hidden = round(ffn_ratio * dim)
        self.ffn: nn.Module | None = None
        if hidden:
            self.norm2 = nn.LayerNorm(dim, eps=1e-6)
            self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.apply(init_linear)

    def forward(
        self,
        queries: Float[Tensor, "queries width"],
        tokens: Float[Tensor, "tokens width"],
        patches: Float[Tensor, "batch patches width"],
    ) -> Float[Tensor, "batch queries width"]:
        """The queries' outputs.

        Args:
            queries: what attends, the same for all images.
            tokens: class tokens that are attended to beside the patches.
            patches: of every image.
        """
        batch = patches.shape[0]
        q = self._heads(self.q(self.norm1(queries)).expand(batch, -1, -1))
        # Tokens are the same in all images: their keys and values are made once.
        own = self.kv(self.norm1(tokens)).expand(batch, -1, -1)
        k, v = torch.cat([own, self.kv(self.norm1(patches))], dim=1).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(q, self._heads(k), self._heads(v))
        x = queries + self.proj(attended.transpose(1, 2).flatten(2))
        return x if self.ffn is None else x + self.ffn(self.norm2(x))

    def _heads(self, x: Float[Tensor, "batch count width"]) -> Float[Tensor, "batch heads count each"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def init_linear(module: nn.Module) -> None:
    """Initial values of a ViT's linear layers as timm draws them: truncated normal of 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ClassAttentionPool(PoolingHead):
    """Class attention pooling with one learned class token (MMCAP's CAP).

    The trunk's own class and register tokens are not attended to, so that trunks with and without them are pooled
    alike.

    Args:
        dim: width of the tokens.
        num_heads: attention heads; the encoder gives as many as the trunk has.
        ffn_ratio: see `ClassAttention`.

    Attributes:
        tokens: the class tokens.

    Raises:
        ConfigError: `num_heads` is missing or does not divide `dim`.
    """

    name = "cap"

    def __init__(self, dim: int, num_heads: int | None = None, ffn_ratio: float = 2.0, tokens: int = 1) -> None:
        super().__init__(dim)
        if num_heads is None or dim % num_heads:
            raise ConfigError(f"pool {self.name!r}: num_heads must divide the trunk's width {dim}, got {num_heads}")
        self.tokens = nn.Parameter(torch.empty(tokens, dim))
        nn.init.trunc_normal_(self.tokens, std=0.02)
        self.block = ClassAttention(dim, num_heads, ffn_ratio)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"] | Pooled:
        return self.block(self.tokens, self.tokens, tokens.patches).flatten(1)

    def no_weight_decay(self) -> set[str]:
        return {"tokens"}
