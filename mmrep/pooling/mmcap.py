"""Class attention pooling with several tokens, over one depth or several: `mcap`, `mmcap`, `mmcap_light`."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmrep.pooling.cap import ClassAttentionPool, init_linear
from mmrep.pooling.contract import Pooled, Tokens


class StageFusion(nn.Module):
    """Patches of several stages, concatenated along channels and reduced by one linear layer (MMCAP).

    Each stage passes a LayerNorm of its own first, which the paper's convolutional stages don't need: a plain ViT's
    residual grows with depth, so that un-normed deep stages would drown the shallow ones.

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
        """The fused patches.

        Args:
            stages: patches of every stage, on one grid.

        Raises:
            ValueError: stages of different grids.
        """
        counts = [stage.shape[1] for stage in stages]
        if any(count != counts[-1] for count in counts):
            raise ValueError(f"mmcap: expected stages of one grid, got {counts} patches; resample them first")
        normed = [norm(stage) for norm, stage in zip(self.norms, stages, strict=True)]
        return self.reduce(torch.cat(normed, dim=-1))


class MultiStageCap(ClassAttentionPool):
    """MMCAP: several class tokens, each a query over all of them and the patches of several depths.

    The embedding is the tokens' outputs side by side: the encoder's linear projection of it is the sum of one
    projection for each token, and the sum of unit length is the mean of unit length. MMCAP takes the stages of a
    convolutional net; several depths of a plain ViT is an adaptation. With `distill` the mean of the input tokens is
    a further query, which no other token sees; its output, made in training mode only, is the auxiliary embedding.

    Args:
        dim: width c of the tokens.
        num_heads: attention heads; the encoder gives as many as the trunk has.
        ffn_ratio: see `ClassAttention`.
        tokens: number K of class tokens.
        distill: whether there is a mean token.
        stages: earlier depths read besides the last one.

    Raises:
        ConfigError: `num_heads` is missing or does not divide `dim`.
    """

    name = "mmcap"

    def __init__(
        self,
        dim: int,
        num_heads: int | None = None,
        ffn_ratio: float = 2.0,
        tokens: int = 4,
        distill: bool = True,
        stages: int = 3,
    ) -> None:
        super().__init__(dim, num_heads, ffn_ratio, tokens)
        self.out_dim = tokens * dim
        self.stages = stages
        self.auxiliary_dims = (dim,) if distill else ()
        self.fusion = StageFusion((dim,) * (stages + 1), dim) if stages else None

    def pool(self, tokens: Tokens) -> Pooled:
        patches, own = self.fused(tokens), self.tokens
        if not (self.training and self.auxiliary_dims):
            return Pooled(self.block(own, own, patches).flatten(1))
        outputs = self.block(torch.cat([own, self.mean_token()]), own, patches)
        return Pooled(outputs[:, :-1].flatten(1), (outputs[:, -1],))

    def fused(self, tokens: Tokens) -> Float[Tensor, "batch patches width"]:
        """The patches attended to: of the last depth, or of all that are read, reduced to one width."""
        return tokens.patches if self.fusion is None else self.fusion((*tokens.stages, tokens.patches))

    def mean_token(self) -> Float[Tensor, "1 width"]:
        """The mean of the class tokens, before they attend."""
        return self.tokens.mean(0, keepdim=True)


class MultiCap(MultiStageCap):
    """MCAP, the paper's own variant for isotropic trunks: `MultiStageCap` without earlier stages."""

    name = "mcap"

    def __init__(
        self,
        dim: int,
        num_heads: int | None = None,
        ffn_ratio: float = 2.0,
        tokens: int = 4,
        distill: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, ffn_ratio, tokens, distill, stages=0)


class LightCap(MultiStageCap):
    """MMCAP-light: the mean token alone queries; its output is the embedding.

    Parameters have the names and shapes of `MultiStageCap`, so that a trained one's weights load into it.
    """

    name = "mmcap_light"

    def __init__(
        self, dim: int, num_heads: int | None = None, ffn_ratio: float = 2.0, tokens: int = 4, stages: int = 3
    ) -> None:
        super().__init__(dim, num_heads, ffn_ratio, tokens, distill=False, stages=stages)
        self.out_dim = dim

    def pool(self, tokens: Tokens) -> Pooled:
        return Pooled(self.block(self.mean_token(), self.tokens, self.fused(tokens)).flatten(1))
