"""A synthetic image-text set: two coloured shapes, their relation and some clutter, with five captions an image.

It is small, learnable within minutes and needs no download. The class of a scene is colour × shape of its salient
object, the larger one, which every caption names first. A scene is a pure function of (seed, split, index).
"""

import hashlib
import io
import json
import logging
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError, at_least, require, within
from mmrep.data.draws import Purpose, uniforms
from mmrep.data.scene_drawing import (
    BACKGROUNDS,
    COLOURS,
    DRAWS,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Composition,
    draw_scene,
    encode_png,
)

SCENES_VERSION = 2
"""Raised by any change of a scene or of the files; part of the name of the default set's folder."""

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
TEMPLATES = ("a {c}", "picture of a {c}", "there is a {c}")

_CONTENT_DRAWS = 12
_RELATION_SYNONYMS = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}

_log = logging.getLogger("mmrep")

Progress = Callable[[int, int], None]


class Split(IntEnum):
    """Which part of the set; the scenes of two splits are drawn independently."""

    TRAIN = 0
    CLASSES = 1
    CAPTIONS = 2


class Scene(NamedTuple):
    """One scene.

    Attributes:
        image: the picture.
        captions: five wordings of at most 16 CLIP tokens each, start and end included. In the split CAPTIONS all of
            them describe the whole scene; otherwise three do, and two name the salient object only.
        label: index into `CLASSES`.
        mask: the pixels of the salient object.
    """

    image: UInt8[np.ndarray, "size size 3"]
    captions: tuple[str, ...]
    label: int
    mask: Bool[np.ndarray, "size size"]


@dataclass(frozen=True)
class ScenesSpec:
    """What `write_scenes` writes.

    Attributes:
        seed: seed of all draws.
        train: training pairs.
        classes_test: images of the zero-shot set, the same number for each of the 64 classes.
        gallery: images of the retrieval set, five captions each.
        size: height and width in pixels.
        shard_size: training pairs a shard.
    """

    seed: int = 0
    train: int = 16_384
    classes_test: int = 1_280
    gallery: int = 500
    size: int = 32
    shard_size: int = 2_048

    def __post_init__(self) -> None:
        within("scenes.seed", self.seed, 0, 2**64 - 1)
        at_least("scenes.train", self.train, 1)
        at_least("scenes.classes_test", self.classes_test, len(CLASSES))
        require(
            self.classes_test % len(CLASSES) == 0,
            f"scenes.classes_test: expected a multiple of {len(CLASSES)} (the classes), got {self.classes_test}",
        )
        # Captions are unique in the gallery; the fifth has 37,632 values, and near that it would never fill.
        within("scenes.gallery", self.gallery, 1, 10_000)
        within("scenes.size", self.size, 16, 1024)
        at_least("scenes.shard_size", self.shard_size, 1)


def _compose(seed: int, split: Split, index: int) -> tuple[Composition, tuple[str, ...], list[float]]:
    """The content of a scene, its captions, and the draws that are left for the drawing."""
    draws = uniforms(seed, Purpose.SCENE, index, 1, _CONTENT_DRAWS + DRAWS, stream=split)[0].tolist()
    remaining = iter(draws)

    def below(bound: int) -> int:
        return int(next(remaining) * bound)

    def pick(choices: Iterable[str]) -> str:
        options = list(choices)
        return options[below(len(options))]

    name = CLASSES[index % len(CLASSES)]
    colour, shape = name.split(" ")
    content = Composition(
        colour=colour,
        shape=shape,
        size=pick(SIZES),
        texture=pick(TEXTURES),
        relation=pick(RELATIONS),
        second_colour=pick(other for other in COLOURS if other != colour),
        second_shape=pick(other for other in SHAPES if other != shape),
        background=pick(BACKGROUNDS),
    )
    captions = _describe(content)
    if split != Split.CAPTIONS:
        # Whole descriptions seldom need the shape to be told apart; with them alone, a short training hardly learns it.
        long, short = below(len(captions)), below(len(TEMPLATES))
        whole = (captions + captions)[long : long + 3]
        captions = whole + tuple(template.format(c=name) for template in (TEMPLATES + TEMPLATES)[short : short + 2])
    return content, captions, draws[_CONTENT_DRAWS:]


def _describe(content: Composition) -> tuple[str, ...]:
    """Five wordings of the content, without draws: two scenes that one of the texts describes share that caption."""
    main = f"{content.colour} {content.shape}"
    full = f"{content.size} {content.texture} {main}"
    second = f"{content.second_colour} {content.second_shape}"
    relation, background = content.relation, content.background
    return (
        f"a {full} {relation} a {second} on {background}",
        f"picture of a {full} {relation} a {second} on {background}",
        f"{background} background, {full} {relation} {second}",
        f"a {main}, {content.size} and {content.texture}, {relation} a {second}",
        f"there is a {main} {_RELATION_SYNONYMS[relation]} a {second} on {background}",
    )


def scene(seed: int, index: int, size: int = 32, split: Split = Split.TRAIN) -> Scene:
    """The scene of (seed, split, index), whatever else is drawn.

    Args:
        seed: seed of the set.
        index: which scene; its class is `index % 64`.
        size: height and width in pixels; the content does not depend on it.
        split: which part of the set.
    """
    content, captions, draws = _compose(seed, split, index)
    image, mask = draw_scene(content, draws, size)
    return Scene(image, captions, index % len(CLASSES), mask)


def gallery_indices(seed: int) -> Iterator[int]:
    """Indices of the retrieval set: all scenes but those with a caption that an earlier one already has."""
    taken: set[str] = set()
    for index in count():
        captions = _compose(seed, Split.CAPTIONS, index)[1]
        if taken.isdisjoint(captions):
            taken.update(captions)
            yield index


def _write_shard(
    path: Path, seed: int, split: Split, size: int, indices: Iterable[int], tick: Callable[[], None]
) -> None:
    """A tar whose bytes depend on the scenes only: no times, no owners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in indices:
            drawn = scene(seed, index, size, split)
            members = {"png": encode_png(drawn.image)}
            if split != Split.CAPTIONS:
                members["cls"] = str(drawn.label).encode()
            if split != Split.CLASSES:
                members["txt"] = "\n".join(drawn.captions).encode()
            if split != Split.TRAIN:
                members["mask.png"] = encode_png(drawn.mask.astype(np.uint8) * 255)
            for extension, content in members.items():
                member = tarfile.TarInfo(f"{index:08d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            tick()


def _write_set(folder: Path, spec: ScenesSpec, progress: Progress | None) -> None:
    done, total = count(1), spec.train + spec.classes_test + spec.gallery

    def tick() -> None:
        if progress is not None:
            progress(next(done), total)

    for shard, start in enumerate(range(0, spec.train, spec.shard_size)):
        indices = range(start, min(start + spec.shard_size, spec.train))
        _write_shard(folder / f"train/{shard:05d}.tar", spec.seed, Split.TRAIN, spec.size, indices, tick)
    tests = {Split.CLASSES: range(spec.classes_test), Split.CAPTIONS: islice(gallery_indices(spec.seed), spec.gallery)}
    for split, chosen in tests.items():
        part = folder / split.name.lower()
        _write_shard(part / "test/0.tar", spec.seed, split, spec.size, chosen, tick)
        (part / "test/nshards.txt").write_text("1\n")
    (folder / "captions/dataset_type.txt").write_text("retrieval\n")
    # Beside train as well, so that it can be trained on with `caption: cls`.
    for place in (folder, folder / "classes"):
        (place / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        (place / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    (folder / "scenes.json").write_text(_record(spec))


def _record(spec: ScenesSpec) -> str:
    return json.dumps({"version": SCENES_VERSION, "spec": asdict(spec)}, indent=2) + "\n"


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place in the end, or vanishes where something fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError as error:
            if not folder.exists():
                raise
            raise ConfigError(
                f"{folder}: cannot be replaced by the new set ({error.strerror}); name another"
            ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_scenes(output_dir: Path, spec: ScenesSpec, progress: Progress | None = None) -> None:
    """Writes a set: WebDataset shards for training, and two test sets in CLIP_benchmark's layout.

    `train/{00000..}.tar` hold png, cls and txt (five lines); `classes/` (zero-shot) and `captions/` (retrieval) have
    `test/0.tar` with png, mask.png and cls or txt; class names and templates, and scenes.json, lie beside. The bytes
    are a pure function of the spec and `SCENES_VERSION`.

    Args:
        output_dir: a folder that does not exist yet, or an empty one; it appears complete or not at all.
        spec: what to write.
        progress: called after each scene with the number written and the number of all.

    Raises:
        ConfigError: `output_dir` is taken.
    """
    output_dir = output_dir.resolve()
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise ConfigError(f"{output_dir}: exists and is not an empty folder; name another, or remove it first")
    with _staged(output_dir) as folder:
        _write_set(folder, spec, progress)


def default_scenes() -> Path:
    """The folder of the default set in the cache; written on first use, which takes some seconds."""
    spec = ScenesSpec()
    folder = cache_root() / "scenes" / hashlib.sha256(_record(spec).encode()).hexdigest()[:16]
    if not (folder / "scenes.json").exists():
        _log.info("writing the default scenes (%d training pairs, about 110 MB) to %s", spec.train, folder)
        try:
            write_scenes(folder, spec)
        except ConfigError:
            # Another process was faster, with the same bytes.
            if not (folder / "scenes.json").exists():
                raise
    return folder
