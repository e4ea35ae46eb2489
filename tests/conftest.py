"""Fixtures that many tests share: tiny shards and models, the real data's place, run-time type checks."""

import io
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, here or in a process that a test starts: tests run side by side, one on each core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests start many processes. Where bytecode is not written, each of them would compile torch anew, for seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell without a terminal starts what runs in its background with Ctrl-C ignored, and processes inherit that: the
# tests of Ctrl-C would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from jaxtyping import config, install_import_hook

install_import_hook("mmrep", "typechecking.check")

import toy_head  # noqa: F401  # a user's own pooling head, so that all tests over the registry run on one

TINY_MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "image": {
        "trunk": "vit_base_patch16_clip_224",
        "args": {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2},
    },
    "text": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def small_pool(name: str) -> dict[str, Any]:
    """A head with its default arguments, but for stages: the tiny trunk has one block before its last."""
    return {"name": name, "args": {"stages": 1} if name.startswith("mmcap") else {}}


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> Path:
    """A shard of (key, {extension: bytes}) samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, members in samples:
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def png(colour: tuple[int, int, int], size: tuple[int, int] = (16, 16)) -> bytes:
    """A picture of one colour, with a darker corner so that crops and flips can be told apart."""
    from PIL import Image

    image = Image.new("RGB", size, colour)
    image.paste(tuple(c // 2 for c in colour), (0, 0, size[0] // 2, size[1] // 3))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 40)}


def colour_samples(count: int, start: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    """Samples of four colours with a text of two lines, a json, and a label; no two of 48 in a row look alike."""
    samples = []
    for i in range(start, start + count):
        name, colour = list(COLOURS.items())[i % 4]
        shade = tuple(max(0, c - 3 * (i // 4 % 12)) for c in colour)
        members = {
            "png": png(shade),
            "txt": f"a {name} square number {i}\npicture {i} of something {name}\n".encode(),
            "cls": str(i % 4).encode(),
            "json": f'{{"caption": "{name} {i}", "url": "u{i}"}}'.encode(),
        }
        samples.append((f"{i:06d}", members))
    return samples


@pytest.fixture(scope="session")
def colour_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set in CLIP_benchmark's layout: train (3 shards, 48 samples), test (16), retrieval/test (16)."""
    root = tmp_path_factory.mktemp("colours")
    for shard in range(3):
        write_tar(root / "train" / f"{shard}.tar", colour_samples(16, 16 * shard))
    write_tar(root / "test" / "0.tar", colour_samples(16, 100))
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c} square\na picture of something {c}\n")
    write_tar(root / "retrieval" / "test" / "0.tar", colour_samples(16, 200))
    (root / "retrieval" / "test" / "nshards.txt").write_text("1")
    (root / "retrieval" / "dataset_type.txt").write_text("retrieval\n")
    return root


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """`tiny(pool="ggem", seed=0, **fields)`: a dual encoder small enough for tests (16 patch tokens, width 32)."""
    from mmrep.model.create import create_model

    def build(pool: Any = "cls", seed: int = 0, **fields: Any) -> Any:
        image = {**TINY_MODEL["image"], **fields.pop("image", {})}
        text = {**TINY_MODEL["text"], **fields.pop("text", {})}
        return create_model(pool=pool, seed=seed, **{**TINY_MODEL, **fields, "image": image, "text": text})

    return build


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The unpacked real data; tests that need it skip where it is absent."""
    place = Path(os.environ.get("MMREP_REAL_DATA") or "~/.cache/mmrep/real_data").expanduser()
    if not (place / "cifar10").is_dir():
        pytest.skip(f"no real data in {place} (MMREP_REAL_DATA points elsewhere)")
    return place


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Index files of test shards stay out of the user's cache."""
    os.environ["MMREP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No run-time type checks, for tests of what a user sees who passes something wrong."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def recipe(colour_set: Path, tmp_path: Path) -> Callable[..., Any]:
    """`recipe("name", training={"steps": 8}, …)`: see `recipes.make_recipe`; runs lie in the test's own folder."""
    from recipes import make_recipe

    import mmrep.diagnostics.resolution

    mmrep.diagnostics.resolution.SECONDS = 0.0  # a few batches instead of half a second
    return lambda name="run", **parts: make_recipe(colour_set, tmp_path / name, **parts)
