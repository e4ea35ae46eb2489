"""Heads by name."""

import inspect
from collections.abc import Callable
from typing import Any

from mmrep.config.pooling import ConcatArgs, PoolConfig, check_pool_args
from mmrep.pooling.attention import AttentionPool
from mmrep.pooling.avg_mlp import AverageMlp
from mmrep.pooling.cap import ClassAttentionPool
from mmrep.pooling.composite import Concat
from mmrep.pooling.contract import PoolingHead
from mmrep.pooling.gem import GeM, GGeM
from mmrep.pooling.lse import LogSumExp
from mmrep.pooling.mean import Average, AverageMaximum, ClampedAverage, Maximum
from mmrep.pooling.mmcap import LightCap, MultiCap, MultiStageCap
from mmrep.pooling.regional import RegionalGeM
from mmrep.pooling.simpool import SimPool
from mmrep.pooling.token import ClassToken

HEADS: dict[str, Callable[..., PoolingHead]] = {
    "cls": ClassToken,
    "avg": Average,
    "max": Maximum,
    "avgmax": AverageMaximum,
    "gem": GeM,
    "ggem": GGeM,
    "rgem": RegionalGeM,
    "relu_avg": ClampedAverage,
    "lse": LogSumExp,
    "avg_mlp": AverageMlp,
    "map": AttentionPool,
    "simpool": SimPool,
    "cap": ClassAttentionPool,
    "mcap": MultiCap,
    "mmcap": MultiStageCap,
    "mmcap_light": LightCap,
    "concat": Concat,
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
    checked = check_pool_args(name, args)
    if isinstance(checked, ConcatArgs):
        return Concat([build_configured(part, dim, num_heads) for part in checked.parts])
    if num_heads is not None and "num_heads" in inspect.signature(HEADS[name]).parameters:
        args["num_heads"] = num_heads
    return HEADS[name](dim, **args)


def build_configured(pool: PoolConfig, dim: int, num_heads: int | None = None) -> PoolingHead:
    """The head of a config; its own `num_heads`, if it gives one, goes before the trunk's.

    Raises:
        ConfigError: see `build_pool`.
    """
    return build_pool(pool.name, dim, **{"num_heads": num_heads, **pool.args})
