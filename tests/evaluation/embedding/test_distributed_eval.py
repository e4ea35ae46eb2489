"""One, two and three processes, and FSDP2 on two: the same bits; a damaged image ends all of them alike."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import colour_samples, png, write_tar

pytestmark = pytest.mark.long
WORLDS = [(world, rank) for world in (1, 2, 3) for rank in range(world)]


@pytest.fixture(scope="module")
def out(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    root = folder / "sets"
    for place in ("", "retrieval"):
        for damaged in ("", "damaged"):
            samples = colour_samples(16, 100)
            if damaged:
                samples[6] = ("bad", {**samples[6][1], "png": png((1, 2, 3))[:50]})  # of the second batch
            write_tar(root / damaged / place / "test/0.tar", samples)
            (root / damaged / place / "test/nshards.txt").write_text("1")
            for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
                shutil.copy(colour_set / name, root / damaged / name)
            (root / damaged / "retrieval").mkdir(exist_ok=True)
            (root / damaged / "retrieval/dataset_type.txt").write_text("retrieval")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("several_processes.py")), str(root), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("part", ["plain", "cached", "again"])
@pytest.mark.parametrize(("world", "rank"), WORLDS[1:])
def test_every_process_finds_what_one_finds(out: Path, world: int, rank: int, part: str) -> None:
    one, found = arrays(out / "plain-1-0.npz"), arrays(out / f"{part}-{world}-{rank}.npz")
    assert one.keys() == found.keys() and len(one) > 20
    for name, values in one.items():
        np.testing.assert_array_equal(values, found[name], name)
    assert len(one["classes avg images"]) == 16


@pytest.mark.parametrize("rank", [0, 1])
def test_sharded_models_find_the_same(out: Path, rank: int) -> None:
    one, found = arrays(out / "plain-1-0.npz"), arrays(out / f"sharded-2-{rank}.npz")
    assert one.keys() == found.keys()
    for name, values in one.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6, err_msg=name)


def test_sharded_weights_have_the_digest_of_whole_ones(out: Path) -> None:
    digests = {(out / f"digests-{world}-{rank}").read_text() for world, rank in WORLDS}
    assert len(digests) == 1 and len(set(digests.pop().split())) == 2


def test_a_damaged_image_is_the_same_line_on_every_process(out: Path) -> None:
    lines = {(out / f"error-{world}-{rank}").read_text() for world, rank in WORLDS}
    (line,) = lines
    assert line.startswith("DataError: ") and "sample 'bad', member 'png'" in line and "\n" not in line
