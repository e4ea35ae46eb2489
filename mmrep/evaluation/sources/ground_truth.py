"""The ground truth of Revisited Oxford and Paris (Radenović et al., arXiv 1803.11285) and the images that it names."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import SetConfig
from mmrep.data.shards import IMAGE_EXTENSIONS
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.check import local_place
from mmrep.evaluation.sources.plain_pickle import read_plain_pickle
from mmrep.evaluation.sources.records import Records, file_size, read_pixels

_MOST_BYTES = 256 << 20
GRADES = ("easy", "hard", "junk")

Corners = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


class Query(NamedTuple):
    """One query of a set.

    Attributes:
        name: the name of its image.
        box: the part of the image to look for; None: the whole image.
        easy: positions of gallery images that clearly show it.
        hard: positions of gallery images that show it under difficult conditions.
        junk: positions of gallery images that are ignored.
    """

    name: str
    box: Corners | None
    easy: NDArray[np.int64]
    hard: NDArray[np.int64]
    junk: NDArray[np.int64]


class GroundTruth(NamedTuple):
    """The right gallery images of each query.

    Attributes:
        gallery: names of the gallery images.
        queries: the queries.
    """

    gallery: tuple[str, ...]
    queries: tuple[Query, ...]


def read_ground_truth(path: Path) -> GroundTruth:
    """Read a ground truth file as its authors publish it (`gnd_roxford5k.pkl`), or the same structure as JSON.

    It is a dictionary of `imlist` (names of the gallery), `qimlist` (names of the queries' images) and `gnd`: for each
    query a dictionary of `bbx` (left, top, right, bottom), `easy`, `hard` and `junk` (positions in `imlist`). Pickles
    are read without executing anything.

    Raises:
        ConfigError: no such file.
        DataError: it can't be read, or does not fit together.
    """
    require(path.is_file(), f"ground truth {path}: no such file")
    where = f"ground truth {path}"
    size = file_size(path)
    if size > _MOST_BYTES:
        raise DataError(
            f"{where}: {size:,} bytes, where a ground truth has some 100,000; more than {_MOST_BYTES:,} refused"
        )
    data = path.read_bytes()
    if path.suffix == ".json":
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON: {str(error)[:200]}") from error
    else:
        content = read_plain_pickle(data, where)
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        raise DataError(f"{where}: expected a dictionary with imlist, qimlist and gnd")
    gallery, names = (_names(content[key], f"{where}: {key}") for key in ("imlist", "qimlist"))
    twice = [name for name, count in Counter(gallery).items() if count > 1]
    if twice:
        raise DataError(f"{where}: imlist: {len(twice)} names occur twice, first {twice[0]!r}")
    entries = content["gnd"]
    if not isinstance(entries, list | tuple) or len(entries) != len(names):
        raise DataError(f"{where}: expected in gnd a list of one dictionary for each of the {len(names)} queries")
    pairs = enumerate(zip(names, entries, strict=True))
    queries = [_query(name, entry, len(gallery), f"{where}: query {i} ({name})") for i, (name, entry) in pairs]
    return GroundTruth(gallery, tuple(queries))


def _names(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: expected a list of names")
    for name in names:
        # The file comes from a stranger: its names must not lead out of the folder of images.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{where}: {name!r} leads out of the folder of images")
    return tuple(names)


def _query(name: str, entry: Any, gallery: int, where: str) -> Query:
    if not isinstance(entry, dict) or not {"easy", "hard"} <= entry.keys():
        raise DataError(f"{where}: expected a dictionary with bbx, easy, hard and junk")
    graded = [_positions(entry.get(grade, ()), gallery, f"{where}: {grade}") for grade in GRADES]
    together = np.concatenate(graded)
    if len(np.unique(together)) < len(together):
        raise DataError(f"{where}: an image is named twice among easy, hard and junk")
    return Query(name, _box(entry.get("bbx"), where), *graded)


def _positions(values: Any, gallery: int, where: str) -> NDArray[np.int64]:
    if not isinstance(values, list | tuple):
        raise DataError(f"{where}: expected a list of integers")
    # Types are checked before numpy looks at nested lists, which may contain each other without end.
    if not all(type(value) is int and 0 <= value < gallery for value in values):
        raise DataError(f"{where}: expected integers from 0 to {gallery - 1}, positions in imlist")
    return np.array(values, np.int64)


def _box(values: Any, where: str) -> Corners | None:
    if values is None:
        return None
    try:
        if isinstance(values, str | bytes | dict):
            raise TypeError(values)
        left, top, right, bottom = (float(value) for value in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: bbx: expected four numbers") from error
    if not (all(map(math.isfinite, (left, top, right, bottom))) and left < right and top < bottom):
        raise DataError(f"{where}: bbx: expected left < right and top < bottom, got {(left, top, right, bottom)}")
    return left, top, right, bottom


@dataclass(frozen=True)
class InstanceRecords(Records):
    """The images of a ground truth: the gallery, then the queries, cut to their boxes.

    Attributes:
        truth: the ground truth.
        samples: key, file and box of each.
    """

    truth: GroundTruth
    samples: list[tuple[str, Path, Corners | None]]

    def key(self, position: int) -> str:
        """Return the name in the ground truth; that of a query after its number, as one image may hold several."""
        return self.samples[position][0]

    def image(self, position: int) -> UInt8[Tensor, "3 height width"]:
        """Return the pixels; of a query only those within its box, whose corners are rounded to whole pixels."""
        key, path, box = self.samples[position]
        image = read_pixels(path)
        if box is None:
            return image
        left, top, right, bottom = (max(0, round(edge)) for edge in box)
        part = image[:, top:bottom, left:right]
        if 0 in part.shape:
            raise DataError(f"{key}: box {box} lies outside of {path}, {image.shape[2]} × {image.shape[1]} pixels")
        return part

    def digest(self) -> str:
        """Return a digest of keys, boxes, and sizes of the files."""
        state = hashlib.blake2b(digest_size=16)
        for key, path, box in self.samples:
            state.update(repr((key, box, file_size(path))).encode())
        return state.hexdigest()

    def files(self) -> list[Path]:
        return [path for _, path, _ in self.samples]


def open_instances(config: SetConfig) -> InstanceRecords:
    """Find the images that `config.ground_truth` names in the folder `config.path`, as jpg, jpeg, png or webp.

    Raises:
        ConfigError: no folder, no ground truth.
        DataError: the ground truth can't be used; images are missing.
    """
    if config.ground_truth is None:
        raise ConfigError(f"evaluation set {config.path}: task instance: needs ground_truth")
    folder = local_place(config)
    require(folder.is_dir(), f"evaluation set {config.path}: no such folder of images")
    truth = read_ground_truth(Path(config.ground_truth).expanduser())
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    samples: list[tuple[str, str | None, Corners | None]] = [
        (name, _file(name, present), None) for name in truth.gallery
    ]
    samples += [
        (f"query {i} {query.name}", _file(query.name, present), query.box) for i, query in enumerate(truth.queries)
    ]
    missing = [key for key, file, _ in samples if file is None]
    if missing:
        raise DataError(
            f"evaluation set {config.path}: {len(missing)} of {len(samples)} images of {config.ground_truth} are "
            f"missing, first {missing[0]!r}; path must be the folder that they lie in"
        )
    return InstanceRecords(truth, [(key, folder / file, box) for key, file, box in samples if file is not None])


def _file(name: str, present: set[str]) -> str | None:
    return next((file for file in (name, *(f"{name}.{e}" for e in IMAGE_EXTENSIONS)) if file in present), None)
