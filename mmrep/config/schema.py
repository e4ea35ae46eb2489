"""Typed reading of files that others may have written: a JSON or YAML value in, a checked dataclass or value out."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mmrep.config.checks import ConfigError, quoted, require

T = TypeVar("T")


def read_fields(kind: type[T], content: Any, where: str, ignored: Mapping[str, str] | None = None) -> T:
    """Build a dataclass from a mapping after checking every field's name and type.

    Values equal to a field's default are taken whatever the annotation says (some libraries annotate `None` defaults
    wrongly). The dataclass's own checks run as always.

    Args:
        kind: the dataclass.
        content: what the file holds at this place.
        where: the file, and the place in it, that messages name; after a file's name alone stands a colon.
        ignored: keys that are left out although the dataclass has no such field; each with the reason.

    Raises:
        ConfigError: not a mapping, an unknown or missing field, a value of another type, or what the dataclass refuses.
    """
    require(isinstance(content, dict), f"{where.rstrip(':')}: expected keys and values, got {quoted(content)}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]  # a dataclass
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key in (ignored or {}):
            continue
        require(key in fields, f"{where.rstrip(':')}: unknown field {quoted(key)} (valid: {', '.join(fields)})")
        same = value is None if fields[key].default is None else value == fields[key].default
        values[key] = value if same else read_value(hints[key], value, _inner(where, key))
    for name, field in fields.items():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        require(name in values or not needed, f"{where.rstrip(':')}: {name!r} is missing")
    try:
        return kind(**values)
    except ConfigError as error:
        # Our own dataclasses name the place of a field themselves; what is missing is the file.
        file, colon, _ = f"{where} ".partition(": ")
        raise ConfigError(f"{file}: {error}" if colon else str(error)) from error


def read_value(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as `kind`: a plain type, Literal, list, tuple, dict, union, TypedDict or dataclass.

    Lists become tuples where a tuple is asked for, since JSON has none; whole numbers are taken for floats.

    Raises:
        ConfigError: `value` is of another type; the message names the place, what was expected and what came.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return read_fields(kind, value, where)  # type: ignore[arg-type]  # a class, not an instance
    if typing.is_typeddict(kind):
        return _read_typed_dict(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        return _read_union(args, value, where)
    if origin is typing.Literal:
        require(value in args, f"{where.rstrip(':')}: expected one of {', '.join(map(str, args))}, got {quoted(value)}")
        return value
    if origin is list or kind is list:
        require(isinstance(value, list), f"{where.rstrip(':')}: expected a list, got {quoted(value)}")
        return [read_value(args[0] if args else Any, item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is tuple:
        return _read_tuple(args, value, where)
    if origin is dict or kind is dict:
        require(isinstance(value, dict), f"{where.rstrip(':')}: expected keys and values, got {quoted(value)}")
        key_kind, item_kind = args or (Any, Any)
        return {
            read_value(key_kind, key, f"{where.rstrip(':')}: key"): read_value(item_kind, item, _inner(where, str(key)))
            for key, item in value.items()
        }
    return _read_plain(kind, value, where)


def _inner(where: str, key: str) -> str:
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def _read_plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else math.inf
    name = "nothing" if kind is type(None) else kind.__name__
    require(type(value) is kind, f"{where.rstrip(':')}: expected {name}, got {quoted(value)}")
    require(
        kind is not float or math.isfinite(value), f"{where.rstrip(':')}: expected a finite number, got {quoted(value)}"
    )
    return value


def _read_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    problems = []
    for each in args:
        try:
            return read_value(each, value, where)
        except ConfigError as error:
            problems.append(str(error))
    nested = [problem for problem in problems if not problem.startswith(f"{where.rstrip(':')}: expected")]
    expected = " or ".join(_name(each) for each in args)
    raise ConfigError(nested[0] if nested else f"{where.rstrip(':')}: expected {expected}, got {quoted(value)}")


def _read_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    require(isinstance(value, list | tuple), f"{where.rstrip(':')}: expected a list, got {quoted(value)}")
    kinds = (args[0],) * len(value) if len(args) == 2 and args[1] is Ellipsis else args
    require(len(value) == len(kinds), f"{where.rstrip(':')}: expected {len(kinds)} values, got {quoted(value)}")
    return tuple(
        read_value(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(kinds, value, strict=True))
    )


def _read_typed_dict(kind: Any, value: Any, where: str) -> dict[str, Any]:
    """Check the keys that the TypedDict names; further keys, of a newer version, stay as they are."""
    require(isinstance(value, dict), f"{where.rstrip(':')}: expected keys and values, got {quoted(value)}")
    for name in sorted(kind.__required_keys__):
        require(name in value, f"{where.rstrip(':')}: {name!r} is missing")
    hints = typing.get_type_hints(kind)
    return {
        key: read_value(hints[key], item, _inner(where, str(key))) if key in hints else item
        for key, item in value.items()
    }


def _name(kind: Any) -> str:
    if kind is type(None):
        return "nothing"
    return getattr(kind, "__name__", str(kind)) if typing.get_origin(kind) is None else str(kind).replace("typing.", "")
