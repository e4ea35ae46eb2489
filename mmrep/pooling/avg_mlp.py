"""The mean and an MLP of chosen size, the control for heads that add parameters: `avg_mlp`."""

from jaxtyping import Float
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.heads import AvgMlpArgs
from mmrep.pooling.cap import init_linear
from mmrep.pooling.contract import PoolingHead, Tokens, mean_dtype


class AverageMlp(PoolingHead):
    """y = a + W_2 · gelu(W_1 · LN(a) + b_1) + b_2, where a is the mean of the patch tokens.

    The head is as deep as `cap`'s FFN but has no attention: where a head with parameters beats `avg` but not this one,
    it is the parameters that help. With hidden width h it has (2·dim + 1)·h + 3·dim parameters; h is chosen so that
    this is as near to `args.params` as possible, off by at most dim + 1/2.

    Raises:
        ConfigError: `args.params` is too small for a hidden width of 1.
    """

    def __init__(self, dim: int, num_heads: int | None, args: AvgMlpArgs) -> None:
        super().__init__(dim, num_heads, args)
        wanted = 8 * dim**2 if args.params is None else args.params
        each, fixed = 2 * dim + 1, 3 * dim
        hidden = round((wanted - fixed) / each)
        if hidden < 1:
            raise ConfigError(f"params must be at least {each + fixed} at the trunk's width {dim}, got {wanted}")
        self.mlp = nn.Sequential(nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.apply(init_linear)

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        average = x.mean(1, dtype=mean_dtype(x)).to(x.dtype)
        return average + self.mlp(average)
