"""A synthetic image-text set: two coloured shapes, their relation and some clutter, with five captions an image.

It is small, can be learned within minutes and needs no download. The class of a scene is colour × shape of its salient
object: the larger one, which every caption names first. A scene is a pure function of (seed, split, index).
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from enum import IntEnum
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from mmrep.config.caches import cache_root
from mmrep.config.checks import ConfigError
from mmrep.config.shards import SCENE_CLASSES, ScenesSpec
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
from mmrep.data.shard_writer import ShardWriter, staged_folder

SCENES_VERSION = 2
"""Increased by any change of a scene or of the files; part of the folder name of the default set."""

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
assert len(CLASSES) == SCENE_CLASSES, "the config checks sizes by this number"
TEMPLATES = ("a {c}", "picture of a {c}", "there is a {c}")

_CONTENT_DRAWS = 12
_RELATION_SYNONYMS = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}

LOG = logging.getLogger("mmrep")

Progress = Callable[[int, int], None]


class Split(IntEnum):
    """Parts of the set. The scenes of two splits are drawn independently."""

    TRAIN = 0
    CLASSES = 1
    CAPTIONS = 2


class Scene(NamedTuple):
    """One scene.

    Attributes:
        image: the picture.
        captions: five texts of at most 16 CLIP tokens each, including start and end. In the split CAPTIONS all of
            them describe the whole scene; otherwise three do, and two name only the salient object.
        label: index into `CLASSES`.
        mask: the pixels of the salient object.
    """

    image: UInt8[np.ndarray, "size size 3"]
    captions: tuple[str, ...]
    label: int
    mask: Bool[np.ndarray, "size size"]


def _compose(seed: int, split: Split, index: int) -> tuple[Composition, tuple[str, ...], list[float]]:
    """Return the content of a scene, its captions, and the remaining draws, which the drawing takes."""
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
        # Whole descriptions can mostly be told apart without the shape; a short training would hardly learn it.
        long, short = below(len(captions)), below(len(TEMPLATES))
        whole = (captions + captions)[long : long + 3]
        captions = whole + tuple(template.format(c=name) for template in (TEMPLATES + TEMPLATES)[short : short + 2])
    return content, captions, draws[_CONTENT_DRAWS:]


def _describe(content: Composition) -> tuple[str, ...]:
    """Return five texts of the content. No draws: two scenes that a text describes equally well share it."""
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
    """Return a scene, a pure function of (seed, split, index).

    Args:
        seed: seed of the set.
        index: number of the scene; its class is `index % 64`.
        size: height and width in pixels; the content does not depend on it.
        split: part of the set.
    """
    content, captions, draws = _compose(seed, split, index)
    image, mask = draw_scene(content, draws, size)
    return Scene(image, captions, index % len(CLASSES), mask)


def gallery_indices(seed: int) -> Iterator[int]:
    """Yield the indices of the retrieval set: all scenes except those that share a caption with an earlier one."""
    taken: set[str] = set()
    for index in count():
        captions = _compose(seed, Split.CAPTIONS, index)[1]
        if taken.isdisjoint(captions):
            taken.update(captions)
            yield index


def _write_shards(
    folder: Path,
    pattern: str,
    size: int,
    split: Split,
    spec: ScenesSpec,
    indices: Iterable[int],
    tick: Callable[[], None],
) -> None:
    """Write the scenes of some indices into shards of at most `size` samples."""
    writer = ShardWriter(folder, pattern, size)
    try:
        for index in indices:
            drawn = scene(spec.seed, index, spec.size, split)
            members = {"png": encode_png(drawn.image)}
            if split != Split.CAPTIONS:
                members["cls"] = str(drawn.label).encode()
            if split != Split.CLASSES:
                members["txt"] = "\n".join(drawn.captions).encode()
            if split != Split.TRAIN:
                members["mask.png"] = encode_png(drawn.mask.astype(np.uint8) * 255)
            writer.write(f"{index:08d}", members)
            tick()
    finally:
        writer.close()


def _write_set(folder: Path, spec: ScenesSpec, progress: Progress | None) -> None:
    done, total = count(1), spec.train + spec.classes_test + spec.gallery

    def tick() -> None:
        if progress is not None:
            progress(next(done), total)

    _write_shards(folder / "train", "{:05d}.tar", spec.shard_size, Split.TRAIN, spec, range(spec.train), tick)
    tests = {Split.CLASSES: range(spec.classes_test), Split.CAPTIONS: islice(gallery_indices(spec.seed), spec.gallery)}
    for split, chosen in tests.items():
        part = folder / split.name.lower() / "test"
        _write_shards(part, "{}.tar", total, split, spec, chosen, tick)
        (part / "nshards.txt").write_text("1\n")
    (folder / "captions/dataset_type.txt").write_text("retrieval\n")
    # Beside train as well, so that it can be trained on with `caption: cls`.
    for place in (folder, folder / "classes"):
        (place / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
        (place / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")
    (folder / "scenes.json").write_text(_record(spec))


def _record(spec: ScenesSpec) -> str:
    return json.dumps({"version": SCENES_VERSION, "spec": asdict(spec)}, indent=2) + "\n"


def write_scenes(output_dir: Path, spec: ScenesSpec, progress: Progress | None = None) -> None:
    """Write a set: WebDataset shards for training, and two test sets in CLIP_benchmark's layout.

    `train/{00000..}.tar` hold png, cls and txt (five lines). `classes/` (zero-shot) and `captions/` (retrieval) have
    `test/0.tar` with png, mask.png, and cls or txt. Class names, templates and scenes.json lie beside them. The bytes
    are a pure function of the spec and `SCENES_VERSION`.

    Args:
        output_dir: a folder that does not exist yet, or an empty one; it appears complete or not at all.
        spec: the options.
        progress: called after each scene with (scenes written, scenes).

    Raises:
        ConfigError: `output_dir` is taken.
    """
    output_dir = output_dir.resolve()
    if output_dir.exists() and not (output_dir.is_dir() and not any(output_dir.iterdir())):
        raise ConfigError(f"{output_dir}: exists and is not an empty folder; name another, or remove it first")
    with staged_folder(output_dir, empty_ok=True) as folder:
        _write_set(folder, spec, progress)


def default_scenes() -> Path:
    """Return the folder of the default set in the cache. It is written on first use, which takes some seconds."""
    spec = ScenesSpec()
    folder = cache_root() / "scenes" / hashlib.sha256(_record(spec).encode()).hexdigest()[:16]
    if not (folder / "scenes.json").exists():
        LOG.info("writing the default scenes (%d training pairs, about 110 MB) to %s", spec.train, folder)
        try:
            write_scenes(folder, spec)
        except ConfigError:
            # Another process may have been faster, with the same bytes.
            if not (folder / "scenes.json").exists():
                raise
    return folder
