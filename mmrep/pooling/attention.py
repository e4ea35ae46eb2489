"""Attention pooling with one query: `map` and `simpool`."""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.heads import MapArgs, SimPoolArgs
from mmrep.pooling.cap import attention_heads, init_linear
from mmrep.pooling.contract import PoolingHead, Tokens, mean_dtype


class AttentionPool(PoolingHead):
    """Multi-head attention pooling with one learned query and an MLP (SigLIP's MAP head; Zhai et al., arXiv
    2106.04560, as used in arXiv 2303.15343).

    The layer is timm's AttentionPoolLatent, so that weights can be exchanged with timm unchanged.

    Raises:
        ConfigError: the number of attention heads is missing or does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int | None, args: MapArgs) -> None:
        super().__init__(dim, num_heads, args)
        from timm.layers import AttentionPoolLatent

        self.attn_pool = AttentionPoolLatent(
            dim,
            num_heads=attention_heads(dim, args.num_heads or num_heads),
            mlp_ratio=args.mlp_ratio,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return self.attn_pool(tokens.patches)

    def no_weight_decay(self) -> set[str]:
        return {"attn_pool.latent"}


class SimPool(PoolingHead):
    """SimPool (Psomas et al., arXiv 2309.06891, eq. 12-17), where LN is the head's own LayerNorm:

        q = W_Q · mean_n x_n,    k_n = W_K · LN(x_n),    a = softmax_n(q · k_n / √d)
        v_n = LN(x_n) − min LN(x) + ε,    y = (Σ_n a_n v_n^γ)^(1/γ)

    d is the width of one attention head. The minimum is taken over the patches and channels of the image (eq. 16) and
    is not added back. The authors' code takes it over the whole batch, which makes an image's embedding depend on the
    other images. Without γ, y is Σ_n a_n LN(x_n).

    Raises:
        ConfigError: the number of attention heads does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int | None, args: SimPoolArgs) -> None:
        super().__init__(dim, num_heads, args)
        if dim % args.heads:
            raise ConfigError(f"heads must divide the trunk's width {dim}, got {args.heads}")
        self.heads = args.heads
        self.gamma = args.gamma
        self.eps = args.eps
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.apply(init_linear)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        normed = self.norm(x)
        mean = x.mean(1, keepdim=True, dtype=mean_dtype(x)).to(x.dtype)
        q, k = (part.unflatten(-1, (self.heads, -1)) for part in (self.query(mean), self.key(normed)))
        # An element-wise product in fp32, because autocast would run a matrix product in bf16: too coarse for logits.
        exact = mean_dtype(x)
        logits = (q.to(exact) * k.to(exact)).sum(-1) * (self.dim // self.heads) ** -0.5
        weights = logits.softmax(1).unsqueeze(-1)
        values = normed.to(exact)
        if self.gamma is not None:
            values = (values - values.amin((1, 2), keepdim=True) + self.eps).pow(self.gamma)
        pooled = (weights * values.unflatten(-1, (self.heads, -1))).sum(1).flatten(1)
        if self.gamma is not None:
            pooled = pooled.pow(1 / self.gamma)
        return pooled.to(x.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.heads}, gamma={self.gamma}, eps={self.eps}"
