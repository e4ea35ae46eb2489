"""Pooling by choice of a token: `cls`."""

from jaxtyping import Float
from torch import Tensor

from mmrep.pooling.contract import PoolingHead, Tokens


class ClassToken(PoolingHead):
    """The class token (ViT; Dosovitskiy et al., arXiv 2010.11929)."""

    needs_class_token = True

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        return tokens.prefix[:, 0]
