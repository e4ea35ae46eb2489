"""Heads by name."""

import inspect
from typing import Any

from mmrep.config.pooling import check_pool_args
from mmrep.pooling.attention import AttentionPool
from mmrep.pooling.contract import PoolingHead
from mmrep.pooling.gem import GeM, GGeM
from mmrep.pooling.mean import Average, ClampedAverage, Maximum
from mmrep.pooling.token import ClassToken

HEADS: dict[str, type[PoolingHead]] = {
    "cls": ClassToken,
    "avg": Average,
    "max": Maximum,
    "gem": GeM,
    "ggem": GGeM,
    "relu_avg": ClampedAverage,
    "map": AttentionPool,
}


def list_pools() -> list[str]:
    """Names of all heads."""
    return list(HEADS)


def build_pool(name: str, dim: int, num_heads: int | None = None, **args: Any) -> PoolingHead:
    """A pooling head.

    Args:
        name: one of `list_pools()`.
        dim: width of the trunk's tokens.
        num_heads: attention heads of the trunk; heads that need a number of groups or heads default to it.
        args: the head's own arguments (`mmrep.config.pooling`).

    Raises:
        ConfigError: unknown name or argument (lists the valid ones), wrong type, impossible value.
    """
    check_pool_args(name, args)
    if num_heads is not None and "num_heads" in inspect.signature(HEADS[name]).parameters:
        args["num_heads"] = num_heads
    return HEADS[name](dim, **args)
