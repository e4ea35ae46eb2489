"""The help of a verb, made from its dataclass: the options that matter first, then all by group."""

import dataclasses
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from docstring_parser import parse

from mmrep.cli.parsing import Verb

_INDENT, _WIDEST = 30, 100


class _Line(NamedTuple):
    """An option in the help: its dotted name, its values, and its description."""

    name: str
    values: str
    text: str


def verb_help(name: str, verb: Verb, width: int | None = None) -> str:
    """Return the text of `mmrep VERB --help`.

    Args:
        name: name of the verb.
        verb: the verb.
        width: columns of the terminal; None asks it.
    """
    kind, lead = verb.options, verb.lead
    positional = None if verb.positional == "model" else verb.positional
    if width is None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDEST
    width = max(50, min(width, _WIDEST))
    about = summary(kind)
    groups = dict(_groups(kind))
    required = [f.name for f in dataclasses.fields(kind) if _needed(f) and f.name != positional]
    first = next((f for f in dataclasses.fields(kind) if f.name == positional), None)
    words = [] if first is None else [first.name.upper() if _needed(first) else f"[{first.name.upper()}]"]
    words += [*(f"--{name} {name.upper()}" for name in required)]
    lines = [" ".join(["usage: mmrep", name, *filter(None, words), "[--option value ...]"]), ""]
    lines += [*textwrap.wrap(about, width, break_on_hyphens=False), ""]
    every = {line.name: line for group in groups.values() for line in group}
    if lead:
        lines += ["The options that matter most:", *_shown([every[name] for name in lead], width, positional), ""]
    for title, group in groups.items():
        rest = [line for line in group if line.name not in lead]
        if rest:
            lines += [f"{title}:", *_shown(rest, width, positional), ""]
    return "\n".join([*lines, *(f"  $ {example}" for example in verb.examples)]).rstrip()


def summary(kind: Any) -> str:
    """Return what a dataclass's docstring says before its attributes, in one line."""
    return " ".join((parse(kind.__doc__ or "").description or "").split())


def _groups(kind: Any, place: str = "", title: str = "Options") -> Iterator[tuple[str, list[_Line]]]:
    """Yield a title and its options for a dataclass and each dataclass within it."""
    texts = field_texts(kind)
    hints = typing.get_type_hints(kind)
    own, inner = [], []
    if not place and "model" in hints and dataclasses.is_dataclass(hints["model"]):
        own.append(_Line("config", "FILE", "YAML file with options. Later files and options override it."))
    for field in sorted(dataclasses.fields(kind), key=lambda each: not _needed(each)):
        hinted, text = hints[field.name], texts[field.name]
        if dataclasses.is_dataclass(hinted):
            inner.append((hinted, f"{place}{field.name}.", f"{place}{field.name}: {_lowered(text)}"))
        else:
            own.append(_Line(f"{place}{field.name}", _values(hinted), text + _default(field)))
    yield title, own
    for each in inner:
        yield from _groups(*each)


def field_texts(kind: Any) -> dict[str, str]:
    """Return what the docstrings of a dataclass and its bases say of each field, as one line."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= {
            each.arg_name: " ".join((each.description or "").split()) for each in parse(base.__doc__ or "").params
        }
    return texts


def _needed(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: Any) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING or value is None or value in ([], {}, (), ""):
        return ""
    shown = (
        str(value).lower()
        if isinstance(value, bool)
        else " ".join(map(str, value))
        if isinstance(value, (list, tuple))
        else value
    )
    return f" (default: {shown})"


def _values(hinted: Any) -> str:
    """Return what stands for an option's value."""
    origin, args = typing.get_origin(hinted), typing.get_args(hinted)
    if origin is Literal:
        return "|".join(map(str, args))
    if origin in (typing.Union, types.UnionType):
        return "|".join(dict.fromkeys(_values(each) for each in args if each is not type(None)))
    if origin in (list, tuple):
        return f"{_values(args[0])} ..."
    if hinted is bool:
        return "true|false"
    return {int: "N", float: "X", str: "TEXT"}.get(hinted, "YAML")


def _shown(lines: Sequence[_Line], width: int, positional: str | None) -> Iterator[str]:
    """Yield options as lines: names to the left, texts to the right, below a name that is too long for its column."""
    for line in lines:
        head = f"  {line.name.upper()}" if line.name == positional else f"  --{line.name} {line.values}"
        text = textwrap.wrap(line.text, width - _INDENT, break_on_hyphens=False) or [""]
        if len(head) >= _INDENT - 1:
            yield head
            head = ""
        yield f"{head:<{_INDENT}}{text[0]}".rstrip()
        for more in text[1:]:
            yield " " * _INDENT + more


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
