"""The synthetic set: pure scenes, balanced classes, unique gallery captions, exact masks, reproducible files."""

import colorsys
import hashlib
import io
import json
import logging
import subprocess
import sys
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmrep.config.checks import ConfigError
from mmrep.data import scenes
from mmrep.data.scene_drawing import COLOURS, DRAWS, RELATIONS, SHAPES, TEXTURES, Composition, draw_scene, encode_png
from mmrep.data.scenes import (
    CLASSES,
    TEMPLATES,
    ScenesSpec,
    Split,
    default_scenes,
    gallery_indices,
    scene,
    write_scenes,
)

SPEC = ScenesSpec(seed=3, train=40, classes_test=64, gallery=30, size=32, shard_size=16)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "set"
    write_scenes(folder, SPEC)
    return folder


@pytest.fixture(scope="session")
def clip_tokens() -> Callable[[str], int]:
    """Number of CLIP tokens of a text, start and end included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from open_clip.tokenizer import SimpleTokenizer
    tokenizer = SimpleTokenizer()
    return lambda text: len(tokenizer.encode(text)) + 2


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def captions(seed: int, index: int, split: Split) -> tuple[str, ...]:
    """The captions without the drawing, for tests that read many."""
    return scenes._compose(seed, split, index)[1]


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def same(a: scenes.Scene, b: scenes.Scene) -> bool:
    return np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask) and a[1:3] == b[1:3]


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    forwards = [scene(5, index) for index in range(20)]
    backwards = [scene(5, index) for index in reversed(range(20))]
    assert all(same(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    one = scene(5, 7)
    assert not np.array_equal(one.image, scene(6, 7).image)
    assert not np.array_equal(one.image, scene(5, 7 + 64).image)
    assert not np.array_equal(one.image, scene(5, 7, split=Split.CLASSES).image)


def test_golden_scenes() -> None:
    """Whoever changes a scene raises SCENES_VERSION, so that no cache keeps the old ones under the new code."""
    state = hashlib.sha256()
    for seed, index, size, split in [
        (0, 0, 32, Split.TRAIN),
        (0, 77, 64, Split.CLASSES),
        (9, 10**6, 33, Split.CAPTIONS),
    ]:
        drawn = scene(seed, index, size, split)
        state.update(drawn.image.tobytes() + drawn.mask.tobytes() + repr(drawn[1:3]).encode())
    for index in range(100, 164):
        drawn = scene(1, index)
        state.update(drawn.image.tobytes() + drawn.mask.tobytes() + repr(drawn[1:3]).encode())
    assert (scenes.SCENES_VERSION, state.hexdigest()[:32]) == (2, "6b5797c5be606a7a5d91e1591eec8c5b")


def test_pixels_and_captions_have_the_promised_form() -> None:
    for size in (16, 32, 100):
        drawn = scene(0, 4, size)
        assert drawn.image.shape == (size, size, 3) and drawn.image.dtype == np.uint8
        assert drawn.mask.shape == (size, size) and drawn.mask.dtype == bool
        assert len(set(drawn.captions)) == 5
        assert drawn.captions == captions(0, 4, Split.TRAIN)


def test_every_caption_names_the_class() -> None:
    for split in Split:
        for index in range(64):
            drawn = scene(0, index, split=split)
            colour, shape = CLASSES[drawn.label].split()
            for caption in drawn.captions:
                words = caption.replace(",", "").split()
                at = words.index(colour)
                # The salient object comes first.
                assert words[at + 1] == shape
                assert not (set(words[:at]) & (set(COLOURS) | set(SHAPES))), caption


def test_two_captions_are_phrases_of_the_templates_except_in_the_gallery() -> None:
    phrases = {template.format(c=name) for template in TEMPLATES for name in CLASSES}
    assert [sum(text in phrases for text in scene(0, i).captions) for i in range(20)] == [2] * 20
    assert [sum(text in phrases for text in scene(0, i, split=Split.CAPTIONS).captions) for i in range(20)] == [0] * 20


def test_captions_are_short(clip_tokens: Callable[[str], int]) -> None:
    longest = max(clip_tokens(text) for i in range(150) for split in Split for text in captions(0, i, split))
    assert longest == 16


def compose(**changes: str) -> Composition:
    content = Composition("red", "square", "large", "plain", "left of", "blue", "circle", "white")
    return content._replace(**changes)


@pytest.mark.parametrize(
    ("relation", "step_x", "step_y"), [("left of", -1, 0), ("right of", 1, 0), ("above", 0, -1), ("below", 0, 1)]
)
def test_the_relation_holds(relation: str, step_x: int, step_y: int) -> None:
    rng = np.random.default_rng(0)
    for size in ("small", "large"):
        for _ in range(20):
            image, mask = draw_scene(compose(relation=relation, size=size), rng.random(DRAWS).tolist(), 64)
            red, green, blue = image.astype(int).transpose(2, 0, 1)
            second = (blue > red + 60) & (blue > green + 60)
            offset = np.argwhere(mask).mean(0) - np.argwhere(second).mean(0)
            along = offset @ (step_y, step_x)
            assert along > 16 and along > 1.4 * abs(offset @ (step_x, step_y))
            assert mask.sum() > 2.5 * second.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_lie_inside_the_picture(shape: str) -> None:
    rng = np.random.default_rng(1)
    for relation in RELATIONS:
        for size in ("small", "large"):
            for _ in range(10):
                mask = draw_scene(compose(shape=shape, relation=relation, size=size), rng.random(DRAWS).tolist(), 64)[1]
                border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
                assert not border.any()


def test_shapes_and_textures_differ() -> None:
    draws = np.random.default_rng(2).random(DRAWS).tolist()
    masks = [draw_scene(compose(shape=shape), draws, 32)[1] for shape in SHAPES]
    overlaps = [(a & b).sum() / (a | b).sum() for i, a in enumerate(masks) for b in masks[:i]]
    assert max(overlaps) < 0.85
    plain, *others = [draw_scene(compose(texture=texture), draws, 32)[0].astype(int) for texture in TEXTURES]
    for image in others:
        assert 0.05 < (abs(image - plain).max(2) > 30).mean() < 0.25


def hue_of(colour: np.ndarray) -> tuple[float, float]:
    hue, _, saturation = colorsys.rgb_to_hls(*(colour / 255))
    return hue, saturation


def test_masks_cover_the_salient_object() -> None:
    """Inside the mask: the label's colour. Outside of it and of the second object: hardly any colour."""
    for index in range(128):
        drawn = scene(2, index, 64)
        colour = CLASSES[drawn.label].split()[0]
        body = drawn.image[drawn.mask].astype(float)
        body = body[body.max(1) - body.min(1) > 50]
        assert 0.3 < len(body) / drawn.mask.sum() < 0.95
        # Light and texture scale a colour; its direction stays.
        directions = {name: np.array(value) / np.linalg.norm(value) for name, value in COLOURS.items()}
        units = body / np.linalg.norm(body, axis=1, keepdims=True)
        near = [max(directions, key=lambda name: float(directions[name] @ unit)) for unit in units]
        assert Counter(near).most_common(1)[0][0] == colour
        assert near.count(colour) > 0.9 * len(near)


def test_the_content_of_a_mask_does_not_depend_on_the_size() -> None:
    for index in range(32):
        small, large = scene(0, index, 32).mask, scene(0, index, 128).mask
        shrunk = large.reshape(32, 4, 32, 4).mean((1, 3)) > 0.5
        assert (shrunk != small).mean() < 0.02


def test_png_holds_any_pixels_exactly() -> None:
    rng = np.random.default_rng(0)
    # 200 × 200 takes more than one stored block.
    for shape in ((32, 32, 3), (1, 1), (7, 5), (5, 7, 3), (200, 200, 3)):
        image = rng.integers(0, 256, shape, dtype=np.uint8)
        opened = Image.open(io.BytesIO(encode_png(image)))
        opened.load()
        assert opened.mode == ("RGB" if len(shape) == 3 else "L")
        assert np.array_equal(np.asarray(opened), image)


def test_classes_are_all_colours_and_shapes() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 64
    assert Counter(scene(0, i, 16).label for i in range(128)) == dict.fromkeys(range(64), 2)


def test_gallery_captions_are_unique() -> None:
    indices = list(islice(gallery_indices(0), 300))
    texts = [text for index in indices for text in captions(0, index, Split.CAPTIONS)]
    assert len(set(texts)) == len(texts) == 1500


def test_the_gallery_leaves_out_exactly_the_colliding_scenes() -> None:
    indices = list(islice(gallery_indices(5), 150))
    # Seed 5 has a collision early.
    assert indices == [*range(72), *range(73, 151)]
    earlier = {text for index in range(72) for text in captions(5, index, Split.CAPTIONS)}
    assert not earlier.isdisjoint(captions(5, 72, Split.CAPTIONS))


def test_layout(written: Path) -> None:
    assert sorted(files(written)) == sorted(
        [
            "captions/dataset_type.txt",
            "captions/test/0.tar",
            "captions/test/nshards.txt",
            "classes/classnames.txt",
            "classes/test/0.tar",
            "classes/test/nshards.txt",
            "classes/zeroshot_classification_templates.txt",
            "classnames.txt",
            "scenes.json",
            "train/00000.tar",
            "train/00001.tar",
            "train/00002.tar",
            "zeroshot_classification_templates.txt",
        ]
    )
    for place in (written, written / "classes"):
        assert (place / "classnames.txt").read_text().splitlines() == list(CLASSES)
        templates = (place / "zeroshot_classification_templates.txt").read_text().splitlines()
        assert templates == list(TEMPLATES) and all("{c}" in template for template in templates)
    assert (written / "captions/dataset_type.txt").read_text().strip() == "retrieval"
    assert int((written / "classes/test/nshards.txt").read_text()) == 1
    assert int((written / "captions/test/nshards.txt").read_text()) == 1
    assert json.loads((written / "scenes.json").read_text()) == {
        "version": scenes.SCENES_VERSION,
        "spec": {"seed": 3, "train": 40, "classes_test": 64, "gallery": 30, "size": 32, "shard_size": 16},
    }


@pytest.mark.parametrize(
    ("split", "extensions"),
    [
        (Split.TRAIN, ["png", "cls", "txt"]),
        (Split.CLASSES, ["png", "cls", "mask.png"]),
        (Split.CAPTIONS, ["png", "txt", "mask.png"]),
    ],
)
def test_samples_are_the_scenes(split: Split, extensions: list[str], written: Path) -> None:
    if split == Split.TRAIN:
        shards, indices = [written / f"train/{n:05d}.tar" for n in range(3)], list(range(40))
    else:
        shards = [written / split.name.lower() / "test/0.tar"]
        indices = list(range(64)) if split == Split.CLASSES else list(islice(gallery_indices(3), 30))
    found: dict[str, bytes] = {}
    for shard in shards:
        found |= members(shard)
    # Members of a sample stand together, as WebDataset wants them.
    assert list(found) == [f"{index:08d}.{extension}" for index in indices for extension in extensions]
    for index in indices:
        drawn = scene(3, index, 32, split)
        assert np.array_equal(pixels(found[f"{index:08d}.png"]), drawn.image)
        if "cls" in extensions:
            assert int(found[f"{index:08d}.cls"]) == drawn.label
        if "txt" in extensions:
            assert found[f"{index:08d}.txt"].decode().split("\n") == list(drawn.captions)
        if "mask.png" in extensions:
            assert np.array_equal(pixels(found[f"{index:08d}.mask.png"]), drawn.mask * np.uint8(255))


@pytest.mark.long  # another process imports torch with webdataset
def test_bytes_are_reproducible(written: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from mmrep.data.scenes import ScenesSpec, write_scenes;"
        "write_scenes(Path(sys.argv[1]), ScenesSpec(3, 40, 64, 30, 32, 16))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "set")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "set") == files(written)


def test_more_scenes_leave_the_others_alone(written: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", replace(SPEC, train=50, classes_test=128, gallery=40))
    more, fewer = files(tmp_path / "set"), files(written)
    assert more["train/00000.tar"] == fewer["train/00000.tar"]
    for part in ("classes", "captions"):
        old, new = members(written / part / "test/0.tar"), members(tmp_path / "set" / part / "test/0.tar")
        assert len(new) > len(old) and list(new.items())[: len(old)] == list(old.items())


def test_progress_counts_every_scene(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_scenes(tmp_path / "set", SPEC, lambda done, total: calls.append((done, total)))
    assert calls == [(done, 134) for done in range(1, 135)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(error: Any, tmp_path: Path) -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 60:
            raise error

    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
        write_scenes(tmp_path / "deep/set", SPEC, interrupt)
    assert list((tmp_path / "deep").iterdir()) == []
    write_scenes(tmp_path / "deep/set", SPEC)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["set"]


def test_nothing_is_in_place_before_all_is_written(tmp_path: Path) -> None:
    seen: set[bool] = set()
    write_scenes(tmp_path / "set", SPEC, lambda *_: seen.add((tmp_path / "set").exists()))
    assert seen == {False}


def test_a_taken_folder_is_refused_and_an_empty_one_filled(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_scenes(tmp_path, SPEC)
    with pytest.raises(ConfigError, match="not an empty folder"):
        write_scenes(tmp_path / "note", SPEC)
    assert files(tmp_path) == {"note": b"mine"}
    (tmp_path / "empty").mkdir()
    write_scenes(tmp_path / "empty", SPEC)
    assert (tmp_path / "empty/scenes.json").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("train", 0),
        ("classes_test", 0),
        ("classes_test", 100),
        ("gallery", 0),
        ("gallery", 40_000),
        ("size", 8),
        ("shard_size", 0),
    ],
)
def test_a_wrong_spec_is_refused(field: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"scenes.{field}.*{value}"):
        ScenesSpec(**{field: value})


@pytest.fixture
def small_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Makes the default set small, and its cache empty."""
    monkeypatch.setattr(scenes, "ScenesSpec", lambda: SPEC)
    monkeypatch.setenv("MMREP_CACHE", str(tmp_path))
    return tmp_path


def test_the_default_set_is_written_once(small_default: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mmrep")
    first = default_scenes()
    assert first.parent == small_default / "scenes" and (first / "train/00000.tar").exists()
    assert [str(first) in record.getMessage() for record in caplog.records] == [True]
    before = (first / "scenes.json").stat().st_mtime_ns
    assert default_scenes() == first
    assert len(caplog.records) == 1 and (first / "scenes.json").stat().st_mtime_ns == before


def test_the_default_folder_names_spec_and_version(small_default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = default_scenes()
    monkeypatch.setattr(scenes, "SCENES_VERSION", 10**6)
    second = default_scenes()
    monkeypatch.setattr(scenes, "ScenesSpec", lambda: replace(SPEC, seed=4))
    assert len({first, second, default_scenes()}) == 3


def test_a_faster_process_wins(small_default: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes the same set while this one writes."""
    write_set = scenes._write_set

    def overtaken(folder: Path, spec: ScenesSpec, progress: Any) -> None:
        write_set(folder, spec, progress)
        if not overtaken_once:
            overtaken_once.append(True)
            default_scenes()

    overtaken_once: list[bool] = []
    monkeypatch.setattr(scenes, "_write_set", overtaken)
    folder = default_scenes()
    assert (folder / "scenes.json").exists()
    assert list(folder.parent.iterdir()) == [folder]


def test_a_foreign_folder_in_the_cache_is_not_taken_for_the_set(small_default: Path) -> None:
    folder = default_scenes()
    (folder / "scenes.json").unlink()
    with pytest.raises(ConfigError, match="not an empty folder"):
        default_scenes()
