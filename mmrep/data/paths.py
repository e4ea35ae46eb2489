"""Paths of shards: patterns expanded, files found beside shards, lists read."""

import os
from glob import glob
from pathlib import Path

from mmrep.config.checks import ConfigError, one_of, require
from mmrep.data.files import can_be_a_name, expand_braces, is_blank, read_regular
from mmrep.data.remote import expand_remote, is_remote, read_remote

_PACKED = (".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")
_COMPRESSED = (".gz", ".tgz", ".zst", ".bz2", ".xz")
_SCENES = "scenes:"
_SCENE_PARTS = ("train", "classes", "captions")


def resolve_place(path: str) -> str:
    """Return the folder of a short name: `scenes:train`, `scenes:classes` or `scenes:captions`.

    The default scenes are written on first use. Any other path is returned unchanged.

    Raises:
        ConfigError: an unknown part of the scenes.
    """
    if not path.startswith(_SCENES):
        return path
    one_of("scenes", path, [_SCENES + part for part in _SCENE_PARTS])
    # Numpy and PIL are needed only here.
    from mmrep.data.scenes import default_scenes

    return str(default_scenes() / path.removeprefix(_SCENES))


def expand_shards(shards: str | list[str], where: str = "shards") -> list[Path | str]:
    """Return the tar files of a path with braces, a glob, a folder, or a list of these, each in its order.

    Returns:
        Paths of local files, and addresses of remote ones.

    Raises:
        ConfigError: nothing matches, a file is missing, a `pipe:` address, a compressed shard.
    """
    found: list[Path | str] = []
    for pattern in [shards] if isinstance(shards, str) else shards:
        require(not pattern.startswith("pipe:"), f"{where}: {pattern!r}: pipe: runs a shell and is not supported")
        found += expand_remote(pattern) if is_remote(pattern) else _expand(resolve_place(pattern), where)
        require(bool(found), f"{where}: nothing matches {pattern!r}")
    seen = set()
    for path in found:
        require(path not in seen, f"{where}: {path} is listed twice; give a source a weight to draw from it more often")
        seen.add(path)
        compressed = str(path).endswith(_COMPRESSED)
        require(not compressed, f"{where}: {path} is compressed and can't be read by offset; unpack it to a .tar")
    return found


def local_shards(shards: str | list[str], where: str = "shards") -> list[Path]:
    """Return the same as `expand_shards`, and raise ConfigError for a remote address."""
    found = expand_shards(shards, where)
    for path in found:
        require(isinstance(path, Path), f"{where}: {path}: expected local files")
    return [path for path in found if isinstance(path, Path)]


def _expand(pattern: str, where: str) -> list[Path]:
    place = str(Path(pattern).expanduser()) if pattern.startswith("~") else pattern
    names = expand_braces(place, f"{where}: {pattern!r}")
    paths = []
    for name in names:
        require(can_be_a_name(name), f"{where}: not a possible file name: {name[:80]!r}")
        matches = [name] if os.path.exists(name) else sorted(glob(name))  # noqa: PTH110, PTH207  # of 10^5 names
        if not matches:
            among = f" (one of {len(names)} that {pattern!r} expands to)" if len(names) > 1 else ""
            raise ConfigError(f"{where}: no such shard: {name}{among}")
        if len(matches) > 1:  # index files and catalogs lie beside the shards
            matches = [match for match in matches if not match.endswith(".npz")]
        for match in map(Path, matches):
            paths += _tars(match, where)
    return paths


def _tars(match: Path, where: str) -> list[Path]:
    """Return a file itself, or the shards of a folder."""
    require(match.suffix != ".npz", f"{where}: {match} is an index file or a catalog; name the shards themselves here")
    if not match.is_dir():
        return [match]
    packed = [path for path in match.glob("*.t*") if path.name.endswith((".tgz", *_PACKED))]
    if packed:
        raise ConfigError(f"{where}: {packed[0]} lies among the shards and is compressed: unpack it to a .tar")
    tars = sorted(match.glob("*.tar"))
    require(bool(tars), f"{where}: no .tar file in folder {match}; {_help(match)}")
    return tars


def _help(folder: Path) -> str:
    """Return what to do about a folder without shards."""
    below = next((path for path in sorted(folder.glob("*/")) if any(path.glob("*.tar"))), None)
    if below:
        return f"shards lie in {below}"
    return (
        "`mmrep data pack FORMAT` makes shards of images and annotations (coco, csv, folder, …; see "
        "`mmrep data pack --help`)"
    )


def find_beside(shard: str, name: str) -> str | None:
    """Return the path of a file in the folder of a shard, local or remote, or one folder up; None if it is missing."""
    folder = shard.rpartition("/")[0] or "."
    for place in (f"{folder}/{name}", f"{folder.rpartition('/')[0] or '..'}/{name}"):
        if read_remote(place, missing_ok=True) is not None if is_remote(place) else Path(place).is_file():
            return place
    return None


def read_lines(path: str | Path, where: str) -> list[str]:
    """Return the lines of a text file, local or remote, without blank lines at its end.

    Raises:
        ConfigError: the file is missing, empty, or not UTF-8; or a line is blank, which would shift the rest.
    """
    try:
        place = resolve_place(str(path))
        text = (read_remote(place) if is_remote(place) else read_regular(Path(place).expanduser())).decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where}: can't read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: {path} is not UTF-8 text (byte {error.start})") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    require(bool(lines), f"{where}: {path} has no lines")
    for number, line in enumerate(lines, 1):
        require(not is_blank(line), f"{where}: {path}: line {number} is blank")
    return lines
