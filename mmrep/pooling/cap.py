"""Class attention pooling: `cap`, `mcap`, `mmcap`, `mmcap_light`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.heads import CapArgs, LightCapArgs, MultiCapArgs, MultiStageCapArgs
from mmrep.pooling.contract import Pooled, PoolingHead, Tokens


class ClassAttention(nn.Module):
    """A class attention block: class tokens attend over themselves and the patches, then pass through an FFN
    (CaiT; Touvron et al., arXiv 2103.17239, sec. 3; MMCAP, eq. 1-2):

        z ← z + W_o · softmax(W_q LN(z) · (W_k LN(u))ᵀ / √d) · W_v LN(u),    u = [tokens, patches]
        z ← z + FFN(LN(z))

    The patches stay unchanged. CaiT's LayerScale is left out, since it is made for deep stacks. The attention has 4c²
    parameters, the FFN 2·ffn_ratio·c².

    Args:
        dim: width c of the tokens.
        num_heads: attention heads, a divisor of `dim`.
        ffn_ratio: hidden width of the FFN, relative to `dim`; 0 leaves the FFN out (eq. 1-2 alone).
    """

    def __init__(self, dim: int, num_heads: int, ffn_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        # The norm before them has a bias, so these need none.
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
        """Return the outputs of the queries for every image.

        Args:
            queries: tokens that attend, the same for all images.
            tokens: class tokens that are attended to, in addition to the patches.
            patches: patch tokens of every image.
        """
        batch = patches.shape[0]
        q = self._heads(self.q(self.norm1(queries)).expand(batch, -1, -1))
        # The class tokens are the same in all images, so their keys and values are computed once.
        own = self.kv(self.norm1(tokens)).expand(batch, -1, -1)
        k, v = torch.cat([own, self.kv(self.norm1(patches))], dim=1).chunk(2, dim=-1)
        attended = F.scaled_dot_product_attention(q, self._heads(k), self._heads(v))
        x = queries + self.proj(attended.transpose(1, 2).flatten(2))
        return x if self.ffn is None else x + self.ffn(self.norm2(x))

    def _heads(self, x: Float[Tensor, "batch count width"]) -> Float[Tensor, "batch heads count each"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as timm does in ViTs: weights from a truncated normal of 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def attention_heads(dim: int, num_heads: int | None) -> int:
    """Return `num_heads` after checking that it divides the token width.

    Raises:
        ConfigError: it is missing, or does not divide `dim`.
    """
    if num_heads is None or dim % num_heads:
        raise ConfigError(f"num_heads must divide the trunk's width {dim}, got {num_heads}")
    return num_heads


class ClassAttentionPool(PoolingHead):
    """Class attention pooling with one learned class token (MMCAP's CAP).

    The trunk's own class and register tokens are not attended to, so that trunks with and without them are pooled
    alike.

    Args:
        dim: width c of the tokens.
        num_heads: attention heads of the trunk.
        args: the head's arguments.
        tokens: number of class tokens.

    Attributes:
        tokens: the class tokens.

    Raises:
        ConfigError: the number of attention heads is missing or does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int | None, args: CapArgs, tokens: int = 1) -> None:
        super().__init__(dim, num_heads, args)
        self.tokens = nn.Parameter(torch.empty(tokens, dim))
        nn.init.trunc_normal_(self.tokens, std=0.02)
        self.block = ClassAttention(dim, attention_heads(dim, args.num_heads or num_heads), args.ffn_ratio)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"] | Pooled:
        return self.block(self.tokens, self.tokens, tokens.patches).flatten(1)

    def no_weight_decay(self) -> set[str]:
        return {"tokens"}


class StageFusion(nn.Module):
    """Concatenates the patches of several stages along channels and reduces them by one linear layer (MMCAP).

    Each stage has a LayerNorm of its own, unlike the paper's convolutional stages: the residual stream of a plain ViT
    grows with depth, so that deep stages would dominate the sum.

    Args:
        stage_dims: width of every stage, the last one included.
        dim: width of the result.
    """

    def __init__(self, stage_dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for width in stage_dims)
        self.reduce = nn.Linear(sum(stage_dims), dim)
        init_linear(self.reduce)

    def forward(self, stages: Sequence[Float[Tensor, "batch patches _"]]) -> Float[Tensor, "batch patches width"]:
        """Return the fused patches.

        Args:
            stages: patches of every stage, all of one grid.

        Raises:
            ValueError: the stages have different grids.
        """
        counts = [stage.shape[1] for stage in stages]
        if any(count != counts[-1] for count in counts):
            raise ValueError(f"mmcap: expected stages of one grid, got {counts} patches; resample them first")
        normed = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        return self.reduce(torch.cat(normed, dim=-1))


class MultiCap(ClassAttentionPool):
    """MCAP: several class tokens, each a query over all of them and the patches (MMCAP's variant for isotropic trunks).

    The embedding is the tokens' outputs side by side. The encoder's linear projection of it is the sum of one
    projection for each token, and normalising that sum is the same as normalising the paper's mean. With `distill` the
    mean of the input tokens is a further query, which no other token attends to; its output is the auxiliary embedding.
    """

    def __init__(self, dim: int, num_heads: int | None, args: MultiCapArgs, stages: int = 0) -> None:
        super().__init__(dim, num_heads, args, args.tokens)
        self.out_dim = args.tokens * dim
        self.num_stages = stages
        self.auxiliary_dims = (dim,) if args.distill else ()
        self.fusion = StageFusion((dim,) * (stages + 1), dim) if stages else None

    def pool(self, tokens: Tokens) -> Pooled:
        patches, own = self.fused(tokens), self.tokens
        if not (self.training and self.auxiliary_dims):
            return Pooled(self.block(own, own, patches).flatten(1))
        outputs = self.block(torch.cat([own, self.mean_token()]), own, patches)
        return Pooled(outputs[:, :-1].flatten(1), (outputs[:, -1],))

    def fused(self, tokens: Tokens) -> Float[Tensor, "batch patches width"]:
        """Return the patches attended to: those of the last depth, or those of all depths reduced to one width."""
        return tokens.patches if self.fusion is None else self.fusion((*tokens.stages, tokens.patches))

    def mean_token(self) -> Float[Tensor, "1 width"]:
        """Return the mean of the class tokens before attention."""
        return self.tokens.mean(0, keepdim=True)


class MultiStageCap(MultiCap):
    """MMCAP: `MultiCap` over the patches of several depths.

    MMCAP reads the stages of a convolutional network; several depths of a plain ViT are an adaptation.
    """

    def __init__(self, dim: int, num_heads: int | None, args: MultiStageCapArgs) -> None:
        super().__init__(dim, num_heads, args, args.stages)


class LightCap(MultiCap):
    """MMCAP-light: the mean token is the only query, and its output is the embedding.

    Parameters have the names and shapes of `MultiStageCap`, so that its trained weights can be loaded.
    """

    def __init__(self, dim: int, num_heads: int | None, args: LightCapArgs) -> None:
        untrained = MultiCapArgs(args.num_heads, args.ffn_ratio, args.tokens, distill=False)
        super().__init__(dim, num_heads, untrained, args.stages)
        self.out_dim = dim

    def pool(self, tokens: Tokens) -> Pooled:
        return Pooled(self.block(self.mean_token(), self.tokens, self.fused(tokens)).flatten(1))
