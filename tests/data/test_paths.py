"""Shard patterns: what each stands for, and what is refused."""

from pathlib import Path

import pytest

from mmrep.config.checks import ConfigError
from mmrep.data.paths import expand_shards, find_beside, read_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("00.tar", "01.tar", "02.tar", "odd.txt", "00.tar.index.npz"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more/10.tar").touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("{00..02}.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{02,00}.tar", ["02.tar", "00.tar"]),
        ("0[01].tar", ["00.tar", "01.tar"]),
        ("*.tar", ["00.tar", "01.tar", "02.tar"]),
        ("{0*,more/*}.tar", ["00.tar", "01.tar", "02.tar", "more/10.tar"]),
        (".", ["00.tar", "01.tar", "02.tar"]),
        ("01.tar", ["01.tar"]),
        (["more", "00.tar"], ["more/10.tar", "00.tar"]),
        ("{more,.}", ["more/10.tar", "00.tar", "01.tar", "02.tar"]),
        ("m*", ["more/10.tar"]),
    ],
)
def test_patterns(folder: Path, patterns: str | list[str], expected: list[str]) -> None:
    given = f"{folder}/{patterns}" if isinstance(patterns, str) else [f"{folder}/{p}" for p in patterns]
    assert expand_shards(given) == [folder / name for name in expected]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("{00..03}.tar", r"no such shard: \S+/03\.tar \(one of 4 that '\S+' stands for\)"),
        ("9*.tar", r"no such shard: \S+/9\*\.tar$"),
        ("gone.tar", r"no such shard: \S+/gone\.tar$"),
        ("empty", r"no \.tar file in folder \S+/empty"),
        ("{00..02.tar", r"unbalanced braces"),
        (["00.tar", "0?.tar"], r"\S+/00\.tar is listed twice"),
        ("odd.tar.gz", r"\S+/odd\.tar\.gz is compressed.*unpack it"),
        ("odd.tgz", r"compressed"),
    ],
)
def test_what_is_refused(folder: Path, patterns: str | list[str], message: str) -> None:
    (folder / "odd.tar.gz").touch()
    (folder / "odd.tgz").touch()
    given = f"{folder}/{patterns}" if isinstance(patterns, str) else [f"{folder}/{p}" for p in patterns]
    with pytest.raises(ConfigError, match=f"^data.train.0.: .*{message}"):
        expand_shards(given, "data.train[0]")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:touch {folder}/ran", "pipe: runs a shell and is not supported"),
        ("https://x.org/{0..3}.tar", "remote shards are not supported yet"),
        ("s3://bucket/0.tar", "remote"),
        ("hf://datasets/x/0.tar", "remote"),
    ],
)
def test_addresses_are_refused(folder: Path, address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_shards([f"{folder}/00.tar", address.replace("{folder}", str(folder))])
    assert not (folder / "ran").exists()


def test_find_beside(folder: Path) -> None:
    (folder / "names.txt").touch()
    assert find_beside(folder / "00.tar", "names.txt") == folder / "names.txt"
    assert find_beside(folder / "more/10.tar", "names.txt") == folder / "names.txt"
    (folder / "more/names.txt").touch()
    assert find_beside(folder / "more/10.tar", "names.txt") == folder / "more/names.txt"
    assert find_beside(folder / "00.tar", "other.txt") is None


def test_read_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone \r\n two\n\n".encode())
    assert read_lines(tmp_path / "a.txt", "x") == ["one", "two"]
    with pytest.raises(ConfigError, match=r"^x: can't read \S+gone\.txt: No such file or directory$"):
        read_lines(tmp_path / "gone.txt", "x")
