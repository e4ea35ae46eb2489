"""Malformed copies of plain data: every place, and values that no field expects."""

import copy
from collections.abc import Iterator
from typing import Any

VALUES = [None, "x", -1, 0, 1.5, 1e300, float("nan"), [], {}, True, 10**9, 10**30, [1, 2], "/dev/zero", "x" * 5000]
ABSENT = object()


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place below a node, as the keys and positions that lead there."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield (*path, key)
        yield from places(node[key], (*path, key))


def mutated(base: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place; ABSENT removes it."""
    content = copy.deepcopy(base)
    node = content
    for key in path[:-1]:
        node = node[key]
    if value is ABSENT:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content
