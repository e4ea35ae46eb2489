"""Makes clip_benchmark.json, the figures that test_clip_benchmark.py expects, by running CLIP_benchmark.

Run it in an environment of CLIP_benchmark's own; REAL_DATA holds the real data (see tests/conftest.py):

    pip install clip_benchmark==1.6.2 open_clip_torch==3.3.0 torch==2.15.0 numpy==2.2.6 webdataset==1.0.2 requests
    python tests/parity/make_clip_benchmark.py REAL_DATA

The model is a tiny CLIP (32 px, patch 8, context 77) trained for 900 steps on CIFAR-10, Tiny ImageNet and Flickr8k. Its
weights are stored in half precision, and of the token embedding only the rows that the sets' texts use:

    python tests/parity/make_clip_benchmark.py REAL_DATA --store OPEN_CLIP_FOLDER
"""

import argparse
import io
import json
import platform
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
WEIGHTS, CONFIG, EXPECTED = (HERE / f"clip_benchmark{end}" for end in (".safetensors", "_model.json", ".json"))
EMBEDDING = "token_embedding.weight"
VOCABULARY = 49_408
WORDS = ("dog", "man", "woman", "boy", "girl", "ball", "water", "snow", "grass", "red", "blue", "running")
"""Classes of the set with several labels an image: the words that one of its captions has."""
TEMPLATES, IMAGES = 8, 3_000
"""Of ImageNet's 80 and of CIFAR-10's 10,000, for the sake of the test's time."""
SETS = {
    "cifar10": "zeroshot_classification",
    "imagenet_sample": "zeroshot_classification",
    "words": "zeroshot_classification",
    "flickr8k_sample": "zeroshot_retrieval",
}


def derive_sets(real_data: Path, folder: Path) -> None:
    """The sets of SETS under `folder`, from the real data; nothing is random."""
    (folder / "flickr8k_sample").symlink_to(real_data / "flickr8k_sample")
    templates = "zeroshot_classification_templates.txt"
    small, source = folder / "cifar10", real_data / "cifar10"
    (small / "test").mkdir(parents=True)
    for name in ("classnames.txt", templates):
        (small / name).symlink_to(source / name)
    _rewritten(source / "test", small / "test", lambda name, data: (name, data), 2 * IMAGES)
    photos, source = folder / "imagenet_sample", real_data / "imagenet_sample"
    photos.mkdir()
    (photos / "test").symlink_to(source / "test")
    (photos / "classnames.txt").symlink_to(source / "classnames.txt")
    lines = (source / templates).read_text().splitlines()
    (photos / templates).write_text("\n".join(lines[:: len(lines) // TEMPLATES]) + "\n")
    words = folder / "words"
    (words / "test").mkdir(parents=True)
    (words / "dataset_type.txt").write_text("multilabel\n")
    (words / "classnames.txt").write_text("\n".join(WORDS) + "\n")
    (words / templates).write_text("{c}\na photo of {c}\n")
    _rewritten(real_data / "flickr8k_sample" / "test", words / "test", _several_labels)


def _several_labels(name: str, data: bytes) -> tuple[str, bytes]:
    """A member with captions as one with labels."""
    if not name.endswith(".txt"):
        return name, data
    found = set(data.decode().lower().replace(".", " ").split())
    buffer = io.BytesIO()
    np.save(buffer, np.array([word in found for word in WORDS], dtype=np.int64))
    return name[:-3] + "npy", buffer.getvalue()


def _rewritten(
    source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes]], most: int | None = None
) -> None:
    """The members of a split, `most` at most, in one shard."""
    (target / "nshards.txt").write_text("1")
    with tarfile.open(target / "0.tar", "w") as out:
        for name, data in islice(_members(source), most):
            member = tarfile.TarInfo()
            member.name, content = change(name, data)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def _members(split: Path) -> Iterator[tuple[str, bytes]]:
    for shard in range(int((split / "nshards.txt").read_text())):
        with tarfile.open(split / f"{shard}.tar") as tar:
            for member in tar:
                yield member.name, tar.extractfile(member).read()  # type: ignore[union-attr]  # shards hold plain files


def write_open_clip(folder: Path) -> Path:
    """The stored model as a folder that open_clip and mmrep load; rows that no text uses are zero."""
    state = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    rows = state.pop("rows").long()
    embedding = torch.zeros(VOCABULARY, state[EMBEDDING].shape[1])
    embedding[rows] = state[EMBEDDING]
    folder.mkdir(parents=True)
    save_file(state | {EMBEDDING: embedding}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(CONFIG.read_text())
    return folder


def store_weights(model: Path, sets: Path) -> None:
    """Writes WEIGHTS and CONFIG from an exported model."""
    from open_clip.tokenizer import SimpleTokenizer

    texts = ["", *WORDS]
    for name in SETS:
        if (sets / name / "classnames.txt").exists():
            names = (sets / name / "classnames.txt").read_text().splitlines()
            templates = (sets / name / "zeroshot_classification_templates.txt").read_text().splitlines()
            texts += [template.replace("{c}", each) for each in names for template in templates]
    captions = (data for name, data in _members(sets / "flickr8k_sample" / "test") if name.endswith(".txt"))
    texts += [line for data in captions for line in data.decode().splitlines()]
    rows = SimpleTokenizer(context_length=77)(texts).unique()
    state = load_file(model / "open_clip_model.safetensors")
    state[EMBEDDING] = state[EMBEDDING][rows]
    save_file({name: value.half() for name, value in state.items()} | {"rows": rows.int()}, WEIGHTS)
    CONFIG.write_text((model / "open_clip_config.json").read_text())


def run_peer(task: str, data: Path, model: Path, output: Path, options: list[str]) -> tuple[str, dict[str, float]]:
    """CLIP_benchmark's own program on one set: the command, and its metrics."""
    arguments = ["eval", "--dataset", f"wds/{data.name}", "--dataset_root", str(data), "--task", task,
                 "--model", f"local-dir:{model}", "--pretrained", "", "--num_workers", "1",
                 "--recall_k", "1", "5", "10", *options, "--output", str(output)]  # fmt: skip
    subprocess.run([sys.executable, "-m", "clip_benchmark.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    shown = shlex.join(["clip_benchmark", *arguments])
    for place, name in ((data, "SET"), (model, "MODEL"), (output, "OUTPUT")):
        shown = shown.replace(str(place), name)
    return shown, json.loads(output.read_text())["metrics"]


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("real_data", type=Path)
    parser.add_argument("--store", type=Path, help="an exported model to store instead")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        (work / "sets").mkdir()
        derive_sets(asked.real_data.resolve(), work / "sets")
        if asked.store:
            store_weights(asked.store, work / "sets")
            return
        model = write_open_clip(work / "model")
        packages = ("clip_benchmark", "open_clip_torch", "torch", "numpy", "webdataset", "pillow", "scikit-learn")
        content: dict[str, Any] = {
            "python": platform.python_version(),
            "versions": {package: version(package) for package in packages},
            "sets": {},
        }
        for name, task in SETS.items():
            output = work / "output.json"
            command, metrics = run_peer(task, work / "sets" / name, model, output, ["--no_amp"])
            amp = run_peer(task, work / "sets" / name, model, output, [])[1]
            content["sets"][name] = {"command": command, "metrics": metrics, "metrics_with_amp": amp}
    EXPECTED.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
