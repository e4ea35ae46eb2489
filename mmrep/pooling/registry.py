"""Building pooling heads by name."""

from typing import Any

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import PoolConfig
from mmrep.config.pools import find_pool, make_args, registered_pools
from mmrep.pooling.contract import PoolingHead


def list_pools() -> list[str]:
    """Return the names of all registered heads."""
    return list(registered_pools())


def build_pool(name: str, dim: int, num_heads: int | None = None, **args: Any) -> PoolingHead:
    """Build a pooling head.

    Args:
        name: one of `list_pools()`.
        dim: width of the trunk's tokens.
        num_heads: attention heads of the trunk; heads that need a number of groups or heads default to it.
        args: the head's own arguments; `mmrep pools` lists them.

    Raises:
        ConfigError: unknown name or argument, a value of another type, or an impossible one.
    """
    checked = make_args(name, args)
    try:
        return find_pool(name).load()(dim, num_heads, checked)
    except ConfigError as error:
        raise ConfigError(f"pool {name!r}: {error}") from error


def build_configured(pool: PoolConfig, dim: int, num_heads: int | None = None) -> PoolingHead:
    """Build the head of a config. The arguments of the config go before the trunk's number of heads.

    Raises:
        ConfigError: see `build_pool`.
    """
    return build_pool(pool.name, dim, **{"num_heads": num_heads, **pool.args})
