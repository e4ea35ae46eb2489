"""The pooling heads' names and arguments, checked before torch is imported."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrep.config.checks import ConfigError, above, at_least, one_of, require

Norm = Literal["before", "after"]
Negatives = Literal["clamp", "shift", "signed"]
Grouping = Literal["contiguous", "random"]

MAX_EXPONENT = 100.0
"""Exponents are kept in (0, MAX_EXPONENT]; past it a power mean is the maximum for all that fp32 can tell."""


@dataclass(frozen=True)
class NoArgs:
    """Heads without arguments."""


@dataclass(frozen=True)
class GeMArgs:
    """Arguments of `gem`: one exponent for all channels.

    Attributes:
        p: initial exponent.
        eps: floor of clamped values, and the scale below which `signed` is smoothed.
        negatives: how negative tokens are treated (`clamp`, `shift`, `signed`).
        learn: whether the exponent is trained.
    """

    p: float = 3.0
    eps: float = 1e-6
    negatives: Negatives = "clamp"
    learn: bool = True

    def __post_init__(self) -> None:
        above("pool args.p", self.p, 0)
        require(self.p <= MAX_EXPONENT, f"pool args.p: expected at most {MAX_EXPONENT:g}, got {self.p}; use pool 'max'")
        above("pool args.eps", self.eps, 0)


@dataclass(frozen=True)
class GGeMArgs(GeMArgs):
    """Arguments of `ggem`: one exponent for each group of channels.

    Attributes:
        groups: number of groups; None means the number of the trunk's attention heads.
        grouping: `contiguous` slices of channels, or a fixed `random` partition (an A/A control).
        grouping_seed: seed of the random partition.
    """

    groups: int | None = None
    grouping: Grouping = "contiguous"
    grouping_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.groups", self.groups, 1)


@dataclass(frozen=True)
class ReluAvgArgs:
    """Arguments of `relu_avg`.

    Attributes:
        eps: floor of clamped values.
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        above("pool args.eps", self.eps, 0)


@dataclass(frozen=True)
class MapArgs:
    """Arguments of `map`.

    Attributes:
        num_heads: attention heads; None means as many as the trunk has.
        mlp_ratio: hidden width of the MLP over the token width.
    """

    num_heads: int | None = None
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        at_least("pool args.num_heads", self.num_heads, 1)
        above("pool args.mlp_ratio", self.mlp_ratio, 0)


POOL_ARGS: dict[str, type] = {
    "cls": NoArgs,
    "avg": NoArgs,
    "max": NoArgs,
    "gem": GeMArgs,
    "ggem": GGeMArgs,
    "relu_avg": ReluAvgArgs,
    "map": MapArgs,
}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated type (an int is a float too, a bool is neither)."""
    kinds = typing.get_args(annotation) or (annotation,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def check_pool_args(name: str, args: dict[str, Any]) -> Any:
    """The arguments of head `name` as its dataclass.

    Raises:
        ConfigError: unknown head or argument, wrong type, impossible value.
    """
    one_of("pool", name, POOL_ARGS)
    declared = {f.name: typing.get_type_hints(POOL_ARGS[name])[f.name] for f in dataclasses.fields(POOL_ARGS[name])}
    for key, value in args.items():
        if key not in declared:
            valid = ", ".join(declared) or "none"
            raise ConfigError(f"pool {name!r} has no argument {key!r} (valid: {valid})")
        if typing.get_origin(declared[key]) is Literal:
            one_of(f"pool {name!r}, argument {key!r}", str(value), typing.get_args(declared[key]))
        elif not _fits(value, declared[key]):
            kind = getattr(declared[key], "__name__", str(declared[key]))
            raise ConfigError(f"pool {name!r}, argument {key!r}: expected {kind}, got {value!r}")
    return POOL_ARGS[name](**args)


@dataclass(frozen=True)
class PoolConfig:
    """A pooling head by name.

    Attributes:
        name: one of `POOL_ARGS`.
        args: the head's arguments; those left out have the head's defaults.
        label: name in tables and folders of a study; None makes one from name and args.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self) -> None:
        check_pool_args(self.name, self.args)
        if self.label is None:
            suffix = "".join(f"_{key}-{value}" for key, value in sorted(self.args.items()))
            object.__setattr__(self, "label", self.name + suffix)
        require(
            all(c.isalnum() or c in "._-" for c in str(self.label)),
            f"pool label {self.label!r}: letters, digits, '.', '_' and '-' only, since it names a folder",
        )

    @classmethod
    def parse(cls, value: "str | dict[str, Any] | PoolConfig", where: str = "pool") -> "PoolConfig":
        """A PoolConfig from `avg` or from `{name: ggem, args: {groups: 12}}`."""
        if isinstance(value, PoolConfig):
            return value
        if isinstance(value, str):
            return cls(value)
        unknown = sorted(set(value) - {"name", "args", "label"})
        require(not unknown, f"{where}: unknown key {unknown[0]!r} (valid: name, args, label)" if unknown else "")
        require("name" in value, f"{where}: expected a name, as in {{name: ggem, args: {{groups: 12}}}}, got {value}")
        args = value.get("args") or {}
        require(isinstance(args, dict), f"{where}.args: expected a mapping, got {args!r}")
        return cls(str(value["name"]), args, value.get("label"))
