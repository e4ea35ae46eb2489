"""The README and the config files' headers say what is true."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

import mmrep
from mmrep.cli import find_verb
from mmrep.cli.parsing import parse
from mmrep.config.tree import CompareConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


STARTS = ("mmrep ", "accelerate launch ")


def readme_commands() -> list[list[str]]:
    """The commands in the README's code blocks, trailing comments cut off."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [
        shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.startswith(STARTS)
    ]


def check(command: list[str]) -> None:
    """Check that the verb exists and its options can be parsed."""
    verb, rest = command[1], command[2:]
    if command[0] == "accelerate":
        verb, rest = "train", command[command.index("train.py") + 1 :]
    if verb == "data":
        verb, rest = f"data {rest[0]}", rest[1:]
    found = find_verb(verb)
    if verb == "data pack":
        found, rest = found[rest[0]], rest[1:]
    parse(found.kind(rest), verb, found.prepare(rest), found.positional)


def test_readme_commands_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = readme_commands()
    assert len(found) >= 6
    for command in found:
        check(command)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_config_headers_open_with_their_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    head = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert head.startswith(STARTS)
    assert f"configs/{path.name}" in head
    check(shlex.split(head))


def test_the_two_commands_of_the_readme() -> None:
    start = "python3 -m venv .venv && .venv/bin/pip install -q uv && .venv/bin/uv run "
    assert f"\n{start}mmrep compare --config configs/quickstart.yaml\n" in README
    assert f"\n{start}pytest\n" in README


def test_every_place_the_readme_names_exists() -> None:
    for place in re.findall(r"^\| (`[^|]*) \|", README[README.index("## Where things are") :], re.MULTILINE):
        for name in re.findall(r"`([\w/.]+)`", place):
            assert (ROOT / name).exists(), name


def test_every_pool_stands_in_the_readme() -> None:
    table = README[README.index("### Poolings") : README.index("### Data")]
    assert set(mmrep.list_pools()) - {"topk"} <= set(re.findall(r"`(\w+)`", table))


def test_every_field_is_documented() -> None:
    """--help shows the line of a field's docstring."""

    def walk(kind: type) -> None:
        text = "".join(base.__doc__ or "" for base in kind.__mro__)
        for field in dataclasses.fields(kind):
            assert f" {field.name}: " in text, f"{kind.__name__}.{field.name}"
            if isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
                walk(field.default_factory)

    walk(CompareConfig)
