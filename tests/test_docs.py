"""The README and the config files' headers say what is true."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mmrep
from mmrep.cli import VERBS, find_verb
from mmrep.cli.help import field_texts
from mmrep.cli.pack import FORMATS
from mmrep.cli.parsing import parse
from mmrep.cli.pools import pool_rows
from mmrep.config.pools import load_plugins, registered_pools
from mmrep.config.tree import CompareConfig
from mmrep.markup import markdown_table
from mmrep.model.load import save_model
from mmrep.pooling import Tokens

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


def test_every_place_that_the_development_page_names_exists() -> None:
    page = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    for place in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE):
        for name in re.findall(r"`([\w/.]+)`", place):
            assert (ROOT / name).exists(), name


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "launch" / "README.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/pooling.md"])
def test_the_tables_of_heads_are_those_of_the_registry(page: str) -> None:
    own = [pool for pool in registered_pools().values() if pool.head.startswith("mmrep.")]
    assert markdown_table(pool_rows(own), code=(0, 2)) in (ROOT / page).read_text(encoding="utf-8")


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def user_folder(tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a finished run and a photo, as a reader of the documentation has it."""
    save_model(tiny("ggem"), tmp_path / "runs" / "scenes")
    Image.new("RGB", (40, 30), (200, 60, 20)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme_runs(user_folder: Path, unchecked: None) -> None:
    (block,) = python_blocks("README.md")
    names: dict[str, Any] = {"picture": Image.open("photo.jpg")}
    exec(block, names)
    assert names["embedding"].shape == (2, 768) and names["image"].shape == names["text"].shape


def test_the_python_of_the_pooling_page_runs(
    user_folder: Path, unchecked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, own, look = python_blocks("docs/pooling.md")
    exec(build, {})
    monkeypatch.setattr("mmrep.config.pools._REGISTERED", {k: v for k, v in registered_pools().items() if k != "topk"})
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_heads.py").write_text(own)
    load_plugins(["my_heads"])
    head = mmrep.build_pool("topk", dim=8, k=2)
    assert head(Tokens(torch.zeros(1, 0, 8), torch.randn(1, 9, 8), (3, 3))).embedding.shape == (1, 8)
    exec(look, {})
    with Image.open("map.png") as drawn:
        assert drawn.size[0] > 0


def test_every_help_text_is_a_sentence() -> None:
    verbs = [find_verb(name) for name in VERBS if name != "data pack"]
    kinds = {CompareConfig, *(verb.options for verb in verbs), *(verb.options for verb in FORMATS.values())}
    seen = set()
    while kinds:
        kind = kinds.pop()
        seen.add(kind)
        texts = field_texts(kind)
        for field in dataclasses.fields(kind):
            text = texts.get(field.name, "")
            assert re.match(r"[A-Z0-9].*[.)]$", text), f"{kind.__name__}.{field.name}: {text!r}"
            inner = field.default_factory if isinstance(field.default_factory, type) else None
            if dataclasses.is_dataclass(inner) and inner not in seen:
                kinds.add(inner)
