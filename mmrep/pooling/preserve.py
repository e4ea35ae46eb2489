"""Replacing the head of a trained model without changing its output at first (`model.pool_init: preserve`)."""

from typing import NamedTuple

from mmrep.config.pooling import PoolConfig
from mmrep.pooling.composite import Concat, Gated, SideBySide
from mmrep.pooling.contract import PoolingHead
from mmrep.pooling.gem import GGeM
from mmrep.pooling.registry import build_configured


class Graft(NamedTuple):
    """A new head, and the place of the trained head in it.

    Attributes:
        head: the new head.
        prefix: prefix of the trained head's parameters in `head`.
        columns: columns of the embedding that are the trained head's. The projection of all others starts at zero.
        auxiliary: number of auxiliary embeddings before those of the trained head.
    """

    head: PoolingHead
    prefix: str
    columns: slice
    auxiliary: int = 0


def graft(pool: PoolConfig, base: PoolConfig, dim: int, num_heads: int | None) -> Graft:
    """Build a head that initially computes the same as `base`.

    - The same head as `base` is taken over with its parameters.
    - A power mean with `shift` or `signed` in place of the mean starts at p = 1, which is the mean exactly.
    - `concat` with `base` among its parts starts with zeros in the other part's columns of the projection.
    - A head as wide as `base` becomes `base` + gate · head with a gate of zero.
    - A head of another width is put next to `base`, as in `concat`.

    Args:
        pool: the new head.
        base: the head that the weights were trained with.
        dim: width of the tokens.
        num_heads: attention heads of the trunk.

    Raises:
        ConfigError: the heads read different numbers of stages.
    """
    head, old = (build_configured(each, dim, num_heads) for each in (pool, base))
    if pool.meaning(num_heads) == base.meaning(num_heads):
        return Graft(head, "", slice(0, head.out_dim))
    if base.name == "avg" and isinstance(head, GGeM) and head.negatives != "clamp" and pool.name in ("gem", "ggem"):
        head.set_exponents(1.0)
        return Graft(head, "", slice(0, head.out_dim))
    if isinstance(head, Concat):
        parts = [part.meaning(num_heads) for part in pool.checked_args().parts]
        if base.meaning(num_heads) in parts:
            place = parts.index(base.meaning(num_heads))
            start = 0 if place == 0 else head.out_dim - old.out_dim
            auxiliary = 0 if place == 0 else len(head.auxiliary_dims) - len(old.auxiliary_dims)
            return Graft(head, f"heads.{place}.", slice(start, start + old.out_dim), auxiliary)
    kept = slice(0, old.out_dim)
    return Graft(Gated(old, head) if head.out_dim == old.out_dim else SideBySide((old, head)), "heads.0.", kept)
