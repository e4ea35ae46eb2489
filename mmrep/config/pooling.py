"""The pooling heads' names and arguments, checked before torch is imported."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from mmrep.config.checks import ConfigError, above, at_least, one_of, quoted, require

Norm = Literal["before", "after"]
Negatives = Literal["clamp", "shift", "signed"]
Grouping = Literal["contiguous", "random"]
PoolInit = Literal["fresh", "preserve"]

MAX_EXPONENT = 100.0
"""Exponents are kept from 1/MAX_EXPONENT to this; past it a power mean is the maximum for all that fp32 can tell."""


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
        lr_scale: learning rate of the exponent over that of the other parameters.
    """

    p: float = 3.0
    eps: float = 1e-6
    negatives: Negatives = "clamp"
    learn: bool = True
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        above("pool args.p", self.p, 0)
        require(self.p <= MAX_EXPONENT, f"pool args.p: expected at most {MAX_EXPONENT:g}, got {self.p}; use pool 'max'")
        require(self.p >= 1 / MAX_EXPONENT, f"pool args.p: expected at least {1 / MAX_EXPONENT:g}, got {self.p}")
        above("pool args.eps", self.eps, 0)
        above("pool args.lr_scale", self.lr_scale, 0)


@dataclass(frozen=True)
class GGeMArgs(GeMArgs):
    """Arguments of `ggem`: one exponent for each group of channels.

    Attributes:
        groups: number of groups; `channel`: one exponent for each channel; None means the number of the trunk's
            attention heads.
        grouping: `contiguous` slices of channels, or a fixed `random` partition (an A/A control).
        grouping_seed: seed of the random partition.
    """

    groups: int | Literal["channel"] | None = None
    grouping: Grouping = "contiguous"
    grouping_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.groups", None if self.groups == "channel" else self.groups, 1)


@dataclass(frozen=True)
class RegionalGeMArgs(GeMArgs):
    """Arguments of `rgem`: regional, then global power means.

    Attributes:
        p: initial exponent of the global mean.
        regional_p: exponent of the mean over a window; fixed.
        kernel: rows and columns of the window, an odd number.
    """

    p: float = 4.6
    regional_p: float = 2.5
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        above("pool args.regional_p", self.regional_p, 0)
        require(self.regional_p <= MAX_EXPONENT, f"pool args.regional_p: expected at most {MAX_EXPONENT:g}")
        at_least("pool args.kernel", self.kernel, 1)
        require(self.kernel % 2 == 1, f"pool args.kernel: expected an odd number, got {self.kernel}")


@dataclass(frozen=True)
class LogSumExpArgs:
    """Arguments of `lse`.

    Attributes:
        r: initial sharpness: towards 0 the mean, towards infinity the maximum.
        learn: whether it is trained.
        lr_scale: its learning rate over that of the other parameters.
    """

    r: float = 5.0
    learn: bool = True
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        above("pool args.r", self.r, 0)
        require(self.r <= 1e4, f"pool args.r: expected at most 10000, got {self.r:g}; use pool 'max'")
        above("pool args.lr_scale", self.lr_scale, 0)


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
class AvgMlpArgs:
    """Arguments of `avg_mlp`.

    Attributes:
        params: parameters the MLP should have, as nearly as its hidden width allows; None: 8 × width², as `cap`.
    """

    params: int | None = None

    def __post_init__(self) -> None:
        at_least("pool args.params", self.params, 1)


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


@dataclass(frozen=True)
class SimPoolArgs:
    """Arguments of `simpool`.

    Attributes:
        heads: attention heads, whatever the trunk has.
        gamma: exponent of the weighted power mean of the values; None: their weighted mean.
        eps: added to the values, which are shifted to be positive.
    """

    heads: int = 1
    gamma: float | None = 1.25
    eps: float = 1e-6

    def __post_init__(self) -> None:
        at_least("pool args.heads", self.heads, 1)
        above("pool args.gamma", self.gamma, 0)
        above("pool args.eps", self.eps, 0)


@dataclass(frozen=True)
class CapArgs:
    """Arguments of `cap`: class attention pooling with one token.

    Attributes:
        num_heads: attention heads; None means as many as the trunk has.
        ffn_ratio: hidden width of the FFN over the token width; 0: no FFN.
    """

    num_heads: int | None = None
    ffn_ratio: float = 2.0

    def __post_init__(self) -> None:
        at_least("pool args.num_heads", self.num_heads, 1)
        at_least("pool args.ffn_ratio", self.ffn_ratio, 0)


@dataclass(frozen=True)
class MultiCapArgs(CapArgs):
    """Arguments of `mcap`: class attention pooling with several tokens.

    Attributes:
        tokens: number of class tokens.
        distill: whether a mean token is trained beside them, as the student of the others (`loss.distill_*`).
    """

    tokens: int = 4
    distill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.tokens", self.tokens, 1)


@dataclass(frozen=True)
class MultiStageCapArgs(MultiCapArgs):
    """Arguments of `mmcap`: several tokens over the patches of several depths.

    Attributes:
        stages: depths besides the last one, evenly spaced over the blocks; 0 makes it `mcap`.
    """

    stages: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.stages", self.stages, 0)


@dataclass(frozen=True)
class LightCapArgs(CapArgs):
    """Arguments of `mmcap_light`: the mean token alone.

    Attributes:
        tokens: class tokens that it is the mean of.
        stages: as in `mmcap`.
    """

    tokens: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.tokens", self.tokens, 1)
        at_least("pool args.stages", self.stages, 0)


@dataclass(frozen=True)
class ConcatArgs:
    """Arguments of `concat`.

    Attributes:
        heads: two heads, each as in `model.pool`.
    """

    heads: list[Any] = field(default_factory=lambda: ["cls", "avg"])

    def __post_init__(self) -> None:
        require(len(self.heads) == 2, f"pool args.heads: expected two heads, got {len(self.heads)}")
        require(all(head.name != "concat" for head in self.parts), "pool args.heads: 'concat' within 'concat'")

    @property
    def parts(self) -> "list[PoolConfig]":
        """The heads, in their long form."""
        return [PoolConfig.parse(head, f"pool args.heads[{i}]") for i, head in enumerate(self.heads)]


POOL_ARGS: dict[str, type] = {
    "cls": NoArgs,
    "avg": NoArgs,
    "max": NoArgs,
    "avgmax": NoArgs,
    "gem": GeMArgs,
    "ggem": GGeMArgs,
    "rgem": RegionalGeMArgs,
    "relu_avg": ReluAvgArgs,
    "lse": LogSumExpArgs,
    "avg_mlp": AvgMlpArgs,
    "map": MapArgs,
    "simpool": SimPoolArgs,
    "cap": CapArgs,
    "mcap": MultiCapArgs,
    "mmcap": MultiStageCapArgs,
    "mmcap_light": LightCapArgs,
    "concat": ConcatArgs,
}


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` is of the annotated type (an int is a float too, a bool is neither)."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return value in typing.get_args(annotation)
    if origin is list:
        return isinstance(value, list)
    if origin is not None:
        return any(_fits(value, kind) for kind in typing.get_args(annotation))
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (float, int) if annotation is float else annotation)


def _spelled(annotation: Any) -> str:
    """An annotation as a user writes values: `int | 'channel' | None`."""
    origin, kinds = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " | ".join(map(repr, kinds))
    if kinds and origin is not list:
        return " | ".join(_spelled(kind) for kind in kinds)
    return "None" if annotation is type(None) else (origin or annotation).__name__


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
            raise ConfigError(f"pool {name!r} has no argument {quoted(key)} (valid: {valid})")
        if typing.get_origin(declared[key]) is Literal:
            one_of(f"pool {name!r}, argument {key!r}", str(value), typing.get_args(declared[key]))
        elif not _fits(value, declared[key]):
            raise ConfigError(
                f"pool {name!r}, argument {key!r}: expected {_spelled(declared[key])}, got {quoted(value)}"
            )
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
            object.__setattr__(self, "label", self._own_label())
        require(
            all(c.isalnum() or c in "._-" for c in str(self.label)),
            f"pool label {quoted(self.label)}: letters, digits, '.', '_' and '-' only, since it names a folder",
        )

    def meaning(self, num_heads: int | None) -> tuple[str, Any]:
        """What the head computes, however its arguments are spelled; equal for heads that can exchange parameters.

        Args:
            num_heads: attention heads of the trunk, which `groups` and `num_heads` default to.
        """
        args = check_pool_args(self.name, self.args)
        if isinstance(args, ConcatArgs):
            return self.name, tuple(part.meaning(num_heads) for part in args.parts)
        values = {key: value for key, value in dataclasses.asdict(args).items() if key not in ("learn", "lr_scale")}
        for key in ("groups", "num_heads"):
            if key in values and values[key] is None:
                values[key] = num_heads
        return self.name, values

    def _own_label(self) -> str:
        if self.name == "concat":
            return "_".join(["concat", *(str(head.label) for head in check_pool_args(self.name, self.args).parts)])
        return self.name + "".join(f"_{key}-{value}" for key, value in sorted(self.args.items()))

    @classmethod
    def parse(cls, value: "str | dict[str, Any] | PoolConfig", where: str = "pool") -> "PoolConfig":
        """A PoolConfig from `avg` or from `{name: ggem, args: {groups: 12}}`."""
        if isinstance(value, PoolConfig):
            return value
        if isinstance(value, str):
            return cls(value)
        require(isinstance(value, dict), f"{where}: expected a name, or {{name: …, args: {{…}}}}, got {quoted(value)}")
        unknown = sorted(set(value) - {"name", "args", "label"})
        require(not unknown, f"{where}: unknown key {quoted(unknown[0])} (valid: name, args, label)" if unknown else "")
        require(
            "name" in value,
            f"{where}: expected a name, as in {{name: ggem, args: {{groups: 12}}}}, got {quoted(value)}",
        )
        args = value.get("args") or {}
        require(isinstance(args, dict), f"{where}.args: expected a mapping, got {quoted(args)}")
        return cls(str(value["name"]), args, value.get("label"))
