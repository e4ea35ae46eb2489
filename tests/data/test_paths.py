"""Shard patterns: what each stands for, and what is refused."""

from pathlib import Path

import pytest

from mmrep.config.checks import ConfigError
from mmrep.data import files
from mmrep.data.files import expand_braces
from mmrep.data.paths import expand_shards, find_beside, local_shards, read_lines


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
        ("{00..03}.tar", r"no such shard: \S+/03\.tar \(one of 4 that '\S+' expands to\)"),
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


def test_pipes_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="pipe: runs a shell and is not supported"):
        expand_shards([f"{folder}/00.tar", f"pipe:touch {folder}/ran"])
    assert not (folder / "ran").exists()


def test_addresses_stay_addresses(folder: Path) -> None:
    found = expand_shards([f"{folder}/00.tar", "memory://set/{0..1}.tar"])
    assert found == [folder / "00.tar", "memory://set/0.tar", "memory://set/1.tar"]
    with pytest.raises(ConfigError, match=r"^x: memory://set/1\.tar: expected local files$"):
        local_shards("memory://set/1.tar", "x")


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert expand_shards("~/{00..01}.tar") == [folder / "00.tar", folder / "01.tar"]


def test_find_beside(folder: Path) -> None:
    (folder / "names.txt").touch()
    assert find_beside(f"{folder}/00.tar", "names.txt") == f"{folder}/names.txt"
    assert find_beside(f"{folder}/more/10.tar", "names.txt") == f"{folder}/names.txt"
    (folder / "more/names.txt").touch()
    assert find_beside(f"{folder}/more/10.tar", "names.txt") == f"{folder}/more/names.txt"
    assert find_beside(f"{folder}/00.tar", "other.txt") is None


def test_find_beside_of_a_bare_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "names.txt").touch()
    monkeypatch.chdir(folder / "more")
    assert find_beside("10.tar", "names.txt") == "../names.txt"
    assert find_beside("../00.tar", "names.txt") == "../names.txt"


def test_read_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone \r\n two\n\n".encode())
    assert read_lines(tmp_path / "a.txt", "x") == ["one", "two"]
    with pytest.raises(ConfigError, match=r"^x: can't read \S+gone\.txt: No such file or directory$"):
        read_lines(tmp_path / "gone.txt", "x")


def test_a_folder_without_shards_says_what_helps(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ConfigError, match=r"no \.tar file in folder \S+; `mmrep data pack FORMAT` makes shards of"):
        expand_shards(str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0.tar").touch()
    with pytest.raises(ConfigError, match=rf"no \.tar file in folder \S+; shards lie in {tmp_path}/train"):
        expand_shards(str(tmp_path))


def test_what_lies_beside_shards(folder: Path) -> None:
    assert expand_shards(f"{folder}/0*") == [folder / f"0{i}.tar" for i in range(3)]
    with pytest.raises(ConfigError, match=r"^x: \S+00\.tar\.index\.npz is an index file or a catalog; name the shards"):
        expand_shards(f"{folder}/00.tar.index.npz", "x")
    (folder / "03.tar.gz").touch()
    with pytest.raises(ConfigError, match=r"^x: \S+/03\.tar\.gz lies among the shards and is compressed: unpack it"):
        expand_shards(str(folder), "x")


ENDLESS = ["{0..99999999999}.tar", "{5..-9999999}.tar", "{0..9}" * 12, "{0..%s}" % ("9" * 3000)]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_without_end_are_refused(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_NAMES", 20_000)  # the real limit takes seconds to reach
    with pytest.raises(ConfigError, match="expands to more than 20,000 names"):
        expand_braces(pattern, "shards")
