"""Attention from the mean token, without value and output projections: `simpool`."""

from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.pooling.cap import init_linear
from mmrep.pooling.contract import PoolingHead, Tokens, mean_dtype


class SimPool(PoolingHead):
    """SimPool (Psomas et al., arXiv 2309.06891, eq. 12-17), with LN the head's own LayerNorm:

        q = W_Q · mean_n x_n,    k_n = W_K · LN(x_n),    a = softmax_n(q · k_n / √d)
        v_n = LN(x_n) − min LN(x) + ε,    y = (Σ_n a_n v_n^γ)^(1/γ)

    The minimum is the least value of the image over patches and channels (eq. 16), and is not added back. The
    authors' code takes it over the whole batch, by which an image's embedding would depend on the images beside it.

    Args:
        dim: width of the tokens.
        heads: attention heads; the paper's single one by default, whatever the trunk has. d is a head's width.
        gamma: γ; the paper's 1.25 for transformers by default. None: Σ_n a_n LN(x_n).
        eps: ε.

    Raises:
        ConfigError: `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, heads: int = 1, gamma: float | None = 1.25, eps: float = 1e-6) -> None:
        super().__init__(dim)
        if dim % heads:
            raise ConfigError(f"pool 'simpool': heads must divide the trunk's width {dim}, got {heads}")
        self.heads = heads
        self.gamma = gamma
        self.eps = eps
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.apply(init_linear)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        normed = self.norm(x)
        mean = x.mean(1, keepdim=True, dtype=mean_dtype(x)).to(x.dtype)
        q, k = (part.unflatten(-1, (self.heads, -1)) for part in (self.query(mean), self.key(normed)))
        # An element-wise product in fp32: autocast would make a matrix product in bf16, too coarse for large logits.
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
