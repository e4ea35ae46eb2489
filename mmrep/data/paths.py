"""From what the user wrote to shard files that exist; the standard library and braceexpand only."""

from glob import glob
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]  # its stubs lack the error

from mmrep.config.checks import ConfigError, require
from mmrep.data.places import resolve_place

REMOTE = ("http://", "https://", "s3://", "gs://", "hf://")


def expand_shards(shards: str | list[str], where: str = "shards") -> list[Path]:
    """The tar files that a path with braces, a glob, a folder, or a list of these stands for, each in its order.

    Raises:
        ConfigError: nothing matches, a file is missing, a remote or `pipe:` address, a compressed shard.
    """
    found: list[Path] = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        require(not pattern.startswith("pipe:"), f"{where}: {pattern!r}: pipe: runs a shell and is not supported")
        require(not pattern.startswith(REMOTE), f"{where}: {pattern!r}: remote shards are not supported yet; copy them")
        found += _expand(resolve_place(pattern), where)
    seen = set()
    for path in found:
        require(path not in seen, f"{where}: {path} is listed twice; give a source a weight to draw from it more often")
        seen.add(path)
        compressed = path.suffix in (".gz", ".tgz", ".zst", ".bz2", ".xz")
        require(not compressed, f"{where}: {path} is compressed and can't be read by offset; unpack it to a .tar")
    return found


def _expand(pattern: str, where: str) -> list[Path]:
    try:
        names = list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{where}: {pattern!r}: unbalanced braces") from error
    paths = []
    for name in names:
        matches = [name] if Path(name).exists() else sorted(glob(name))  # noqa: PTH207  # Path.glob takes no absolute patterns
        for match in map(Path, matches):
            tars = sorted(match.glob("*.tar")) if match.is_dir() else [match]
            require(bool(tars), f"{where}: no .tar file in folder {match}")
            paths += tars
        if not matches:
            among = f" (one of {len(names)} that {pattern!r} stands for)" if len(names) > 1 else ""
            raise ConfigError(f"{where}: no such shard: {name}{among}")
    return paths


def find_beside(shard: Path, name: str) -> Path | None:
    """A file beside a shard, or one folder up."""
    for folder in (shard.parent, shard.parent.parent):
        if (folder / name).is_file():
            return folder / name
    return None


def read_lines(path: str | Path, where: str) -> list[str]:
    """The lines of a text file; blank ones at its end don't count.

    Raises:
        ConfigError: the file is missing, empty, or not UTF-8; a line is blank, which would shift the rest.
    """
    try:
        text = Path(resolve_place(str(path))).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where}: can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: {path} is not UTF-8 text (byte {error.start})") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    require(bool(lines), f"{where}: {path} has no lines")
    if "" in lines:
        raise ConfigError(f"{where}: {path}: line {lines.index('') + 1} is blank")
    return lines
