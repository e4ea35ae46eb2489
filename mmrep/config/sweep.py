"""The exponents that a sweep after training tries."""

import typing
from dataclasses import dataclass, field
from typing import Any

from mmrep.config.checks import one_of, require
from mmrep.config.heads import MAX_EXPONENT, GeMArgs, Negatives
from mmrep.config.pooling import PoolConfig
from mmrep.config.pools import registered_pools


def gem_like() -> list[str]:
    """Return the names of the heads whose exponents can be set."""
    return [name for name, pool in registered_pools().items() if issubclass(pool.args, GeMArgs)]


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """A sweep of the exponent p.

    Attributes:
        p: The exponents to try, each for all channels at once.
        pool: Head with exponents to put in place of the trained one (gem, ggem, rgem). By default only a head without
            exponents is replaced, by gem.
        negatives: Treatment of negative tokens by the head that is put in (clamp, shift, signed).
        metric: Metric to choose by, as METRIC (the mean over the sets that have it) or SET/METRIC. By default acc1, or
            image_retrieval_recall@1 where there are captions only.
    """

    p: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 3.0, 4.6, 6.0, 10.0])
    pool: str | None = None
    negatives: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.p), "--p: expected at least one exponent")
        for p in self.p:
            low, high = 1 / MAX_EXPONENT, MAX_EXPONENT
            require(low <= p <= high, f"--p: expected values from {low:g} to {high:g}, got {p:g}")
        require(len(set(self.p)) == len(self.p), f"--p: expected each value once, got {self.p}")
        if self.pool is not None:
            one_of("--pool", self.pool, gem_like())
        if self.negatives is not None:
            one_of("--negatives", self.negatives, typing.get_args(Negatives))

    @property
    def replacement(self) -> PoolConfig:
        """The head that replaces the trained one."""
        args: dict[str, Any] = {} if self.negatives is None else {"negatives": self.negatives}
        return PoolConfig(self.pool or "gem", args)
