"""Which exponents a sweep after training tries."""

import math
import typing
from dataclasses import dataclass, field
from typing import Any

from mmrep.config.checks import ConfigError, one_of, quoted, require
from mmrep.config.heads import MAX_EXPONENT, GeMArgs, Negatives
from mmrep.config.pooling import PoolConfig
from mmrep.config.pools import registered_pools


def gem_like() -> list[str]:
    """Return the names of the heads whose exponents can be set."""
    return [name for name, pool in registered_pools().items() if issubclass(pool.args, GeMArgs)]


@dataclass(frozen=True)
class SweepConfig:
    """A sweep of p.

    Attributes:
        p: the exponents, each for all channels at once.
        pool: one of `gem_like()`, in place of the trained head; None: the trained head where it has exponents, else
            `gem`.
        negatives: of the head put in; None: that head's default.
        metric: what the best is chosen by, as `METRIC` (the mean over the sets that have it) or `SET/METRIC`; None:
            acc1, or image_retrieval_recall@1 where no set is a zero-shot one.
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
        """The head put in place of the trained one."""
        args: dict[str, Any] = {} if self.negatives is None else {"negatives": self.negatives}
        return PoolConfig(self.pool or "gem", args)


def parse_exponents(text: str) -> list[float]:
    """`1,3,4.6` as numbers.

    Raises:
        ConfigError: not numbers with commas between.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--p: expected numbers with commas between, as in 1,3,4.6, got {quoted(text)}") from error
    require(all(map(math.isfinite, values)), f"--p: expected finite numbers, got {quoted(text)}")
    return values
