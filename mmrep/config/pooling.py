"""A pooling head in a config: its name, its arguments, and its label in a study."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import mmrep.config.heads  # noqa: F401  # registers mmrep's own heads
from mmrep.config.checks import quoted, require
from mmrep.config.pools import make_args, register_pool

Norm = Literal["before", "after"]
PoolInit = Literal["fresh", "preserve"]


@dataclass(frozen=True)
class PoolConfig:
    """A pooling head by name.

    Attributes:
        name: a registered head (`mmrep.list_pools()`).
        args: the head's arguments; those left out have the head's defaults.
        label: name in tables and folders of a study; None makes one from name and args.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    label: str | None = None

    def __post_init__(self) -> None:
        self.checked_args()
        if self.label is None:
            object.__setattr__(self, "label", self._own_label())
        require(
            all(c.isalnum() or c in "._-" for c in str(self.label)),
            f"pool label {quoted(self.label)}: letters, digits, '.', '_' and '-' only, since it names a folder",
        )

    def checked_args(self) -> Any:
        """Return the arguments as the head's dataclass.

        Raises:
            ConfigError: see `mmrep.config.pools.make_args`.
        """
        return make_args(self.name, self.args)

    def meaning(self, num_heads: int | None) -> tuple[str, Any]:
        """Return what the head computes, however its arguments are spelled.

        Heads of equal meaning can exchange parameters.

        Args:
            num_heads: attention heads of the trunk, which `groups` and `num_heads` default to.
        """
        args = self.checked_args()
        if isinstance(args, ConcatArgs):
            return self.name, tuple(part.meaning(num_heads) for part in args.parts)
        values = {key: value for key, value in dataclasses.asdict(args).items() if key not in ("learn", "lr_scale")}
        for key in ("groups", "num_heads"):
            if key in values and values[key] is None:
                values[key] = num_heads
        return self.name, values

    def _own_label(self) -> str:
        if self.name == "concat":
            return "_".join(["concat", *(str(head.label) for head in self.checked_args().parts)])
        return self.name + "".join(f"_{key}-{value}" for key, value in sorted(self.args.items()))

    @classmethod
    def parse(cls, value: "str | dict[str, Any] | PoolConfig", where: str = "pool") -> "PoolConfig":
        """Return a PoolConfig from `avg` or from `{name: ggem, args: {groups: 12}}`."""
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


@dataclass(frozen=True)
class ConcatArgs:
    """Any two heads, their embeddings side by side.

    Attributes:
        heads: the two heads, each as in `model.pool`.
    """

    heads: list[Any] = field(default_factory=lambda: ["cls", "avg"])

    def __post_init__(self) -> None:
        require(len(self.heads) == 2, f"pool args.heads: expected two heads, got {len(self.heads)}")
        require(all(head.name != "concat" for head in self.parts), "pool args.heads: 'concat' within 'concat'")

    @property
    def parts(self) -> list[PoolConfig]:
        """The heads as configs."""
        return [PoolConfig.parse(head, f"pool args.heads[{i}]") for i, head in enumerate(self.heads)]


register_pool("concat", ConcatArgs, "mmrep.pooling.composite:Concat")
