"""The registry of pooling heads. It needs no torch: a head's class is imported when it is built."""

import dataclasses
import importlib
import logging
import sys
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from mmrep.config.checks import ConfigError, hint, quoted, require
from mmrep.config.schema import read_value

LOG = logging.getLogger("mmrep")
ENTRY_POINTS = "mmrep.pools"
T = TypeVar("T")


@dataclass(frozen=True)
class RegisteredPool:
    """A pooling head in the registry.

    Attributes:
        name: its name in configs.
        args: dataclass of its arguments. The first paragraph of its docstring says what the head computes.
        head: its class, as `module:Class`.
    """

    name: str
    args: type
    head: str

    @property
    def summary(self) -> str:
        """What the head computes, in one line."""
        return " ".join((self.args.__doc__ or "").split("\n\n")[0].split())

    def load(self) -> type:
        """Import and return the class.

        Raises:
            ConfigError: the module cannot be imported, or has no such class.
        """
        module, _, name = self.head.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"pool {self.name!r}: can't import {self.head!r}: {error}") from error


_REGISTERED: dict[str, RegisteredPool] = {}
_FOUND_ENTRY_POINTS: list[str] = []


def register_pool(name: str, args: type, head: str) -> None:
    """Make a pooling head known to configs, the command line, tests and the table of heads.

    Call it where your module is imported, and let mmrep import the module: by an entry point of your package in the
    group `mmrep.pools`, or by `--plugins MODULE`.

        @dataclass(frozen=True)
        class TopKArgs:
            \"\"\"The mean of the k largest values of each channel.\"\"\"
            k: int = 4

        mmrep.register_pool("topk", TopKArgs, "my_package.topk:TopK")

    Args:
        name: its name in configs: letters, digits and underscores.
        args: a frozen dataclass. Its fields are the head's arguments with their types and defaults, its
            `__post_init__` checks them, and its docstring's first paragraph describes the head.
        head: `module:Class`. The class is a `mmrep.pooling.PoolingHead` and is called as
            `Class(dim, num_heads, args)`, where `num_heads` are the trunk's attention heads, or None.

    Raises:
        ValueError: the name is not an identifier or belongs to another head, `args` is no frozen dataclass, or `head`
            is not `module:Class`.
    """
    if not name.isidentifier():
        raise ValueError(f"register_pool: expected a name of letters, digits and underscores, got {name!r}")
    if not (dataclasses.is_dataclass(args) and args.__dataclass_params__.frozen):  # type: ignore[attr-defined]  # undocumented
        raise ValueError(f"register_pool({name!r}): expected a frozen dataclass of arguments, got {args!r}")
    module, colon, attribute = head.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"register_pool({name!r}): expected 'module:Class', got {head!r}")
    before = _REGISTERED.get(name)
    if before is not None and before.head != head:
        raise ValueError(f"register_pool: {name!r} is {before.head} already; choose another name")
    _REGISTERED[name] = RegisteredPool(name, args, head)


def registered_pools() -> dict[str, RegisteredPool]:
    """Return all heads by name, those of installed packages included."""
    _load_entry_points()
    return dict(_REGISTERED)


def find_pool(name: object) -> RegisteredPool:
    """Return a head.

    Raises:
        ConfigError: no head has this name.
    """
    if name not in _REGISTERED:
        _load_entry_points()
    if name not in _REGISTERED:
        raise ConfigError(
            f"pool: unknown value {quoted(name)}{hint(name, _REGISTERED)} (valid: {', '.join(_REGISTERED)}; a head of "
            "your own needs --plugins MODULE)"
        )
    return _REGISTERED[str(name)]


def make_args(name: str, args: dict[str, Any]) -> Any:
    """Return the arguments of head `name` as its dataclass.

    Raises:
        ConfigError: unknown head or argument, a value of another type, or one that the dataclass refuses.
    """
    kind = find_pool(name).args
    hints = typing.get_type_hints(kind)
    declared = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for key in args:
        if key not in declared:
            valid = ", ".join(declared) or "none"
            raise ConfigError(f"pool {name!r} has no argument {quoted(key)}{hint(key, declared)} (valid: {valid})")
    return kind(
        **{key: read_value(declared[key], value, f"pool {name!r}, argument {key!r}") for key, value in args.items()}
    )


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules that register pooling heads. The current folder is searched too.

    Raises:
        ConfigError: a module cannot be imported.
    """
    for name in modules:
        require(
            all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py"),
            f"--plugins {name}: expected the name of a module, as in my_heads for my_heads.py",
        )
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))
        try:
            importlib.import_module(name)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]
            what = (
                "no such module here or among the installed packages" if missing else f"{type(error).__name__}: {error}"
            )
            raise ConfigError(f"--plugins {name}: {what}") from error


def _load_entry_points() -> None:
    """Import the modules that installed packages name as entry points. A broken one must not stop the others."""
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.value in _FOUND_ENTRY_POINTS:
            continue
        _FOUND_ENTRY_POINTS.append(entry.value)
        try:
            entry.load()
        except Exception as error:
            LOG.warning(
                "entry point %s of %s can't be loaded (%s: %s); its pooling heads are missing",
                entry.value, entry.dist and entry.dist.name, type(error).__name__, error,
            )  # fmt: skip
