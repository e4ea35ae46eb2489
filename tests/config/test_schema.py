"""The typed reader: what fits is built, what does not is one line that names the place."""

from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from mmrep.config.checks import ConfigError, quoted, require
from mmrep.config.schema import read_fields, read_value


@dataclass(frozen=True)
class Inner:
    width: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.5
    size: int | tuple[int, int] = 3
    names: list[str] = field(default_factory=list)
    args: dict[str, float] = field(default_factory=dict)
    flag: bool = False
    loose: dict = None  # type: ignore[assignment, type-arg]  # as open_clip annotates

    def __post_init__(self) -> None:
        require(self.rate < 9, f"rate: too large, got {self.rate}")


class Saved(TypedDict):
    format: int
    notes: NotRequired[str]


def test_what_fits_is_built() -> None:
    content = {
        "inner": {"width": 3, "kind": "b"},
        "rate": 2,
        "size": [1, 2],
        "names": ["x"],
        "args": {"p": 1},
        "loose": None,
    }
    assert read_fields(Outer, content, "x.json:") == Outer(Inner(3, "b"), 2.0, (1, 2), ["x"], {"p": 1.0})
    assert read_value(Saved, {"format": 1, "newer": []}, "x") == {"format": 1, "newer": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": "x"}, "x.json: rate: expected float, got 'x'"),
        ({"rate": True}, "rate: expected float, got True"),
        ({"rate": float("nan")}, "rate: expected a finite number, got nan"),
        ({"rate": 10**400}, "rate: expected a finite number, got inf"),
        ({"rate": 9}, "x.json: rate: too large, got 9.0"),
        ({"size": "big"}, "x.json: size: expected int or tuple[int, int], got 'big'"),
        ({"size": [1, 2, 3]}, "size: expected int or tuple"),
        ({"names": "x"}, "names: expected a list, got 'x'"),
        ({"names": [1]}, "x.json: names[0]: expected str, got 1"),
        ({"args": {"p": "x"}}, "x.json: args.p: expected float, got 'x'"),
        ({"flag": 1}, "flag: expected bool, got 1"),
        ({"inner": 3}, "x.json: inner: expected keys and values, got 3"),
        ({"inner": {"kind": "a"}}, "x.json: inner: 'width' is missing"),
        ({"inner": {"width": 1, "kind": "c"}}, "x.json: inner.kind: expected one of a, b, got 'c'"),
        ({"inner": {"width": 1.0}}, "inner.width: expected int, got 1.0"),
        ({"other": 1}, "x.json: unknown field 'other' (valid: inner, rate"),
        ({"rate": "x" * 500}, "…"),
    ],
)
def test_what_does_not_fit_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_fields(Outer, {"inner": {"width": 3}, **change}, "x.json:")
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_no_mapping_and_missing_keys() -> None:
    for content, message in ((3, "x.json: expected keys and values, got 3"), ({}, "x.json: 'format' is missing")):
        with pytest.raises(ConfigError, match=message):
            read_value(Saved, content, "x.json:")
    assert quoted("x" * 500) == "'" + "x" * 78 + "…"
