"""From YAML files and dotted options to a config; whatever is wrong with them is one line."""

import argparse
import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from mmrep.config.checks import ConfigError, quoted, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.strict_yaml import LARGEST_TEXT, read_yaml

T = TypeVar("T")
LONGEST = 400
"""Characters of a message about a config."""


def parse_config(kind: type[T], verb: str, argv: Sequence[str]) -> T:
    """Return a config from YAML files and dotted overrides.

    Later files and options override earlier ones key by key; a list replaces a list. An entry of a list is addressed by
    its number from 0 (`--data.train[0].shards DIR`), which may be left out where the list has one entry.

    Raises:
        ConfigError: unknown key, wrong type, impossible value; one line.
    """
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog=f"mmrep {verb}", exit_on_error=False, description=(kind.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file; options after it override it")
    parser.add_class_arguments(kind)
    try:
        options = parser.parse_args(merged(argv))
        values = vars(parser.instantiate(options))
        values.pop("config")
        return kind(**values)
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, OverflowError) as error:
        text = _explain(error, list(parser.get_defaults().keys()))
        raise ConfigError(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…") from error


def merged(argv: Sequence[str]) -> list[str]:
    """Return the command line with all that its files and its options on lists and poolings say in one `--config`.

    jsonargparse fills an entry of a list that replaces another from that one, and takes an option on a list for one on
    its last entry; so both are settled here.
    """
    content: dict[Any, Any] = {}
    for each in read_configs(argv):
        content = _overlaid(content, each)
    rest: list[str] = []
    position = 0
    options = fold_pool(list(argv))
    while position < len(options):
        option, equals, value = options[position].partition("=")
        position += 1
        if option == "--config":
            position += not equals
            continue
        path = option.removeprefix("--").split(".")
        given = equals or position < len(options)
        value = value if equals else options[position] if given else ""
        listed = value.lstrip().startswith("[") or "[" in option or _crosses_list(content, path)
        if not option.startswith("--") or not listed:
            rest.append(options[position - 1])
            continue
        require(bool(given), f"{option}: expected a value")
        position += not equals
        _put(content, path, read_yaml(value, option), option)
    return [*(["--config", yaml_text(content)] if content else []), *rest]


def yaml_text(content: Any) -> str:
    """Return plain data as YAML without aliases."""
    import yaml

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, _: Any) -> bool:
            return True

    return yaml.dump(content, Dumper=Plain, sort_keys=False)


def _overlaid(base: Any, over: Any) -> Any:
    """Return `over` over `base`: mappings key by key, all else replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: _overlaid(base.get(key), value) for key, value in over.items()}}


def _crosses_list(content: Any, path: list[str]) -> bool:
    """Return whether a dotted path leads to a list of the files, or into one."""
    for part in path:
        if isinstance(content, list):
            return True
        content = content.get(part) if isinstance(content, dict) else None
    return isinstance(content, list)


def _put(content: dict[Any, Any], path: list[str], value: Any, option: str) -> None:
    """Set a value at a path such as `data.train[0].shards`.

    Raises:
        ConfigError: the path goes into a list of several entries without a number, or past its end.
    """
    steps: list[str | int] = []
    for part in path:
        match = re.fullmatch(r"([^\[\]]+)((?:\[\d+\])*)", part)
        if match is None:
            raise ConfigError(f"{option}: expected names and numbers, as in --data.train[0].shards")
        steps += [match[1], *map(int, re.findall(r"\d+", match[2]))]
    node: Any = content
    for i, step in enumerate(steps):
        done, left = _place(steps[:i]), _place(steps[i:])
        if isinstance(node, list) and isinstance(step, str):
            if len(node) != 1:
                raise ConfigError(
                    f"{option}: {done} is a list of {len(node)}: say which entry, as in --{done}[0].{left}, or give "
                    "the whole list"
                )
            node = node[0]
        fits = isinstance(node, list) if isinstance(step, int) else isinstance(node, dict)
        if not fits or (isinstance(step, int) and step >= len(node)):
            entries = f"a list of {len(node)}, numbered from 0" if isinstance(node, list) else "no list in the files"
            raise ConfigError(f"{option}: {done} is {entries}")
        if i + 1 == len(steps):
            node[step] = value
        else:
            node = node[step] if isinstance(step, int) else node.setdefault(step, {})


def _place(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def read_suite(file: str) -> EvaluationConfig:
    """A suite: sets, speed and tasks' options.

    Raises:
        ConfigError: see `parse_config`; the line begins with the file.
    """
    require(Path(file).is_file(), f"--suite: no such file: {file}")
    argv = ["--config", file]
    try:
        check_keys(EvaluationConfig, read_configs(argv)[0])
        return parse_config(EvaluationConfig, "eval", argv)
    except ConfigError as error:
        raise ConfigError(f"{file}: {str(error).removeprefix(f'--config {file}: ')}") from error


def check_keys(kind: Any, content: dict[Any, Any], place: str = "") -> None:
    """Finds keys that a config's dataclass, or one within it, does not have.

    Args:
        kind: the dataclass.
        content: what is to become one.
        place: where that stands, before the key.

    Raises:
        ConfigError: the first such key, with the nearest right one, or all.
    """
    types = typing.get_type_hints(kind)
    for key, value in content.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(types)}"
            raise ConfigError(f"unknown key {quoted(f'{place}{key}')}; {hint}")
        kinds = (types[key], *typing.get_args(types[key]))
        inner = next((each for each in kinds if dataclasses.is_dataclass(each)), None)
        several = typing.get_origin(types[key]) is list and isinstance(value, list)
        for number, part in enumerate(value if several else [value]):
            own = f"{place}{key}" + (f"[{number}]" if several else "")
            if inner and isinstance(part, dict):
                check_keys(inner, part, f"{own}.")
            elif inner and several:
                raise ConfigError(f"{own}: expected keys and values, as in {{path: DIR}}, got {quoted(part)}")


def _explain(error: Exception, valid: list[str]) -> str:
    """jsonargparse's message in the user's words: the key, what was expected, the nearest right one."""
    text = " ".join(str(getattr(error, "message", None) or error).replace("Parser key ", "").split())
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"Problem with given class_path '[\w.]+': ", "", text)
    unknown = re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --([\w.]+)", text)
    if unknown:
        key = unknown[1] or unknown[2]
        if key.startswith("study"):
            return f"unknown key {key!r}: studies are run by `mmrep compare`"
        near = [name for name in valid if name.endswith(f".{key}")] or difflib.get_close_matches(key, valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {key!r}{hint} (--help lists all)"
    return text.replace('"', "", 2) if text.startswith('"') else text


def fold_pool(argv: list[str]) -> list[str]:
    """Folds `--model.pool*` options over the YAML file's pool, in order: another name drops the old one's arguments."""
    rest: list[str] = []
    options: list[tuple[str, str]] = []
    position = 0
    while position < len(argv):
        name, equals, value = argv[position].partition("=")
        if name == "--model.pool" or name.startswith("--model.pool."):
            if not equals:
                position += 1
                require(position < len(argv), f"{name}: expected a value")
                value = argv[position]
            options.append((name.removeprefix("--model.pool").lstrip("."), value))
        else:
            rest.append(argv[position])
        position += 1
    if not options:
        return rest
    pool: Any = "cls"
    for content in read_configs(argv):
        model = content.get("model") or {}
        pool = model.get("pool", pool) if isinstance(model, dict) else pool
    current = _pool_mapping("model.pool", pool)
    for name, text in options:
        value = read_yaml(text, f"--model.pool {text[:80]}")
        if not name:
            current = _pool_mapping("--model.pool", value)
        elif name == "name":
            current = current if current.get("name") == value else {"name": value}
        elif name.startswith("args."):
            current["args"] = dict(current.get("args") or {}, **{name.removeprefix("args."): value})
        else:
            raise ConfigError(f"--model.pool.{name}: unknown option (valid: --model.pool, .name, .args.NAME)")
    return [*rest, "--model.pool", json.dumps(current)]


def _pool_mapping(where: str, value: Any) -> dict[str, Any]:
    named = {"name": value} if isinstance(value, str) else value
    require(
        isinstance(named, dict) and bool(named.get("name")),
        f"{where}: expected a name, or {{name: ggem, args: {{groups: 12}}}}, got {value!r}",
    )
    return dict(named)


def config_files(argv: Sequence[str]) -> list[str]:
    """Return the YAML files that `--config` names."""
    names = [value for name, value in pairwise(argv) if name == "--config"]
    return names + [option.partition("=")[2] for option in argv if option.startswith("--config=")]


def read_configs(argv: Sequence[str]) -> list[dict[str, Any]]:
    """The contents of the YAML files that `--config` names.

    Raises:
        ConfigError: a file that is missing, unreadable, not YAML, or no mapping.
    """
    contents = []
    for name in config_files(argv):
        require(Path(name).is_file(), f"--config: no such file: {name}")
        try:
            require(Path(name).stat().st_size <= LARGEST_TEXT, f"--config {name}: too large for a config")
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {name}: can't be read as UTF-8 text: {error}") from error
        content = read_yaml(text, f"--config {name}")
        kind = "an empty file" if content is None else type(content).__name__
        require(isinstance(content, dict), f"--config {name}: expected keys and values at the top, got {kind}")
        contents.append(content)
    return contents
