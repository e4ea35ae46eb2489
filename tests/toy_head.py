"""A pooling head as a user would add one: one file and one registration. All tests over the registry run on it too."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

import mmrep
from mmrep.config.checks import at_least
from mmrep.pooling import PoolingHead, Tokens


@dataclass(frozen=True)
class TopKArgs:
    """The mean of the k largest values of each channel.

    Attributes:
        k: number of values.
    """

    k: int = 4

    def __post_init__(self) -> None:
        at_least("pool args.k", self.k, 1)


class TopK(PoolingHead):
    """The mean of the k largest values of each channel."""

    def __init__(self, dim: int, num_heads: int | None, args: TopKArgs) -> None:
        super().__init__(dim, num_heads, args)
        self.k = args.k

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        return x.topk(min(self.k, x.shape[1]), dim=1).values.mean(1)


mmrep.register_pool("topk", TopKArgs, "toy_head:TopK")
