"""A safe YAML reader for files from others: plain data of limited size, without duplicate keys."""

import re
from typing import Any

import yaml

from mmrep.config.checks import ConfigError, quoted, require

LARGEST_TEXT = 2**20
MOST_VALUES = 100_000
"""Largest number of values in a document, with its aliases written out."""
DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys, of which YAML keeps the last, and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int | float | bool) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {quoted(key)} stands twice", key_node.start_mark
                )
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{quoted(key)} can't be a key", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


# In YAML 1.1 a float has a dot, and its exponent a sign.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?|[0-9]*\.[0-9]+)(?:[0-9]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, where: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        ConfigError: the text is not YAML, has a duplicate key, or is larger or deeper than any config. The message
            names `where` and the line.
    """
    require(len(text) <= LARGEST_TEXT, f"{where}: {len(text):,} characters, too many for a config")
    try:
        content = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = str(getattr(error, "problem", None) or error)[:200]
        hint = "" if "twice" in problem or "be a key" in problem else "; indent with spaces, close brackets and quotes"
        raise ConfigError(f"{where}: not YAML{place}: {problem}{hint}") from error
    except (RecursionError, ValueError, OverflowError) as error:
        raise ConfigError(f"{where}: not YAML: {str(error)[:200]}") from error
    _check_size(content, where)
    return content


def _check_size(content: Any, where: str) -> None:
    left = MOST_VALUES
    stack = [(content, 0)]
    while stack:
        value, depth = stack.pop()
        left -= 1
        require(
            left > 0 and depth < DEEPEST, f"{where}: too many values or levels for a config (aliases count in full)"
        )
        if isinstance(value, dict):
            stack += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            stack += [(item, depth + 1) for item in value]
