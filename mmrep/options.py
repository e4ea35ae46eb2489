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

from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import EvaluationConfig

T = TypeVar("T")


def parse_config(kind: type[T], verb: str, argv: Sequence[str]) -> T:
    """A config from a YAML file and dotted overrides.

    Raises:
        ConfigError: unknown key, wrong type, impossible value; one line.
    """
    from jsonargparse import ArgumentParser

    read_configs(argv)
    parser = ArgumentParser(prog=f"mmrep {verb}", exit_on_error=False, description=(kind.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file; options after it override it")
    parser.add_class_arguments(kind)
    try:
        options = parser.parse_args(fold_pool(list(argv)))
        values = vars(parser.instantiate(options))
        values.pop("config")
        return kind(**values)
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(error, list(parser.get_defaults().keys()))) from error


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
            raise ConfigError(f"unknown key {f'{place}{key}'!r}; {hint}")
        kinds = (types[key], *typing.get_args(types[key]))
        inner = next((each for each in kinds if dataclasses.is_dataclass(each)), None)
        several = typing.get_origin(types[key]) is list and isinstance(value, list)
        for number, part in enumerate(value if several else [value]):
            own = f"{place}{key}" + (f"[{number}]" if several else "")
            if inner and isinstance(part, dict):
                check_keys(inner, part, f"{own}.")
            elif inner and several:
                raise ConfigError(f"{own}: expected keys and values, as in {{path: DIR}}, got {part!r}")


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
        value = _parse_yaml(f"--model.pool {text}", text)
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
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {name}: can't be read as UTF-8 text: {error}") from error
        content = _parse_yaml(f"--config {name}", text)
        kind = "an empty file" if content is None else type(content).__name__
        require(isinstance(content, dict), f"--config {name}: expected keys and values at the top, got {kind}")
        contents.append(content)
    return contents


def _parse_yaml(where: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(
            f"{where}: not YAML{place}: {problem}; indent with spaces, close brackets and quotes"
        ) from error
