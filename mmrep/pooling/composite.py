"""Heads made of several heads: `concat`, and the gate that adds a new head to a trained one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import ConcatArgs
from mmrep.pooling.contract import Pooled, PoolingHead, Tokens
from mmrep.pooling.registry import build_configured


class Composite(PoolingHead):
    """Base class of heads made of several heads over the same tokens.

    Args:
        heads: heads of one token width.

    Raises:
        ConfigError: two heads read different numbers of stages.
    """

    def __init__(self, heads: Sequence[PoolingHead]) -> None:
        super().__init__(heads[0].dim)
        self.heads = nn.ModuleList(heads)
        self._heads = tuple(heads)
        self.needs_class_token = any(head.needs_class_token for head in heads)
        self.needs_grid = any(head.needs_grid for head in heads)
        self.invariant = all(head.invariant for head in heads)
        self.auxiliary_dims = tuple(width for head in heads for width in head.auxiliary_dims)
        stages = {head.num_stages for head in heads} - {0}
        if len(stages) > 1:
            raise ConfigError(
                f"two heads together: expected one number of stages, got {sorted(stages)}; set args.stages"
            )
        self.num_stages = max(stages, default=0)

    def each(self, tokens: Tokens) -> list[Pooled]:
        """Return the output of each head."""
        return [head(tokens if head.num_stages else tokens._replace(stages=())) for head in self._heads]

    def no_weight_decay(self) -> set[str]:
        return {f"heads.{i}.{name}" for i, head in enumerate(self._heads) for name in head.no_weight_decay()}

    def lr_scales(self) -> dict[str, float]:
        return {f"heads.{i}.{name}": s for i, head in enumerate(self._heads) for name, s in head.lr_scales().items()}


class SideBySide(Composite):
    """The embeddings of several heads side by side."""

    def __init__(self, heads: Sequence[PoolingHead]) -> None:
        super().__init__(heads)
        self.out_dim = sum(head.out_dim for head in heads)

    def pool(self, tokens: Tokens) -> Pooled:
        pooled = self.each(tokens)
        return Pooled(torch.cat([p.embedding for p in pooled], dim=1), _auxiliary(pooled))


class Concat(SideBySide):
    """The head `concat`: two heads of a config side by side."""

    def __init__(self, dim: int, num_heads: int | None, args: ConcatArgs) -> None:
        super().__init__([build_configured(part, dim, num_heads) for part in args.parts])


class Gated(Composite):
    """base(tokens) + gate · head(tokens), with one gate for each channel, initially zero.

    Args:
        base: the head that the weights were trained with.
        head: the new head, of the same output width.
    """

    def __init__(self, base: PoolingHead, head: PoolingHead) -> None:
        super().__init__((base, head))
        assert base.out_dim == head.out_dim, "a gate adds embeddings of one width"
        self.out_dim = base.out_dim
        self.gate = nn.Parameter(torch.zeros(self.out_dim))

    def pool(self, tokens: Tokens) -> Pooled:
        pooled = self.each(tokens)
        base, new = (p.embedding for p in pooled)
        return Pooled(base + self.gate.to(new.dtype) * new, _auxiliary(pooled))


def _auxiliary(pooled: list[Pooled]) -> tuple[Tensor, ...]:
    return tuple(embedding for p in pooled for embedding in p.auxiliary)
