"""Evaluation on CPUs, compared with CLIP_benchmark: `python benchmarks/eval_cpu.py --data FOLDER`.

One tiny CLIP with random weights, exported to open_clip, on real sets, in turns within one run, after start-up on both
sides: mmrep; the lower bound, which is only decoding, resizing, tokenising and the towers' forward passes, one after
the other; CLIP_benchmark, in fp32 like mmrep, and once with amp, its default. Then five models in one pass, compared
with one.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from train_cpu import RESULTS, ROOT, busy_seconds, commit, environment, processor

from mmrep.config.caches import cache_root
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.embedding.embed import centre_of
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.suite import evaluate, write_results
from mmrep.evaluation.tasks.retrieval import flat_captions
from mmrep.evaluation.tasks.zeroshot import prompts
from mmrep.hub import export
from mmrep.model.create import create_model
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.text_encoder import ClipTokenizer

PEER_PINS = (
    "clip_benchmark==1.6.2",
    "open_clip_torch==3.3.0",
    "webdataset==1.0.2",
    "numpy==2.2.6",
    "requests",
    "scikit-learn",
)
SHARED_PACKAGES = ("torch", "torchvision", "timm", "pillow")
"""Packages of which the peer's environment has the same versions as ours."""
SETS = {"flickr8k_sample": "retrieval", "cifar10": "zeroshot", "imagenet_sample": "zeroshot"}
FULLSIZE = "jpeg_fullsize"
"""Full-size photos with one caption each; decoding dominates."""
TARGETS = {"theirs / ours": 3.0, "ours / floor": 1.3, "five models / one": 1.6}
TOLERANCE = 1e-6
CONFIG = EvaluationConfig(workers=0)
"""The default on 2 cores: the process with the towers also decodes. CLIP_benchmark has one worker process too."""


def tiny_model(seed: int) -> DualEncoder:
    """Return a tiny CLIP: ViT of 32 px, patch 8, width 128, 4 layers; text tower of context 77, width 128, 2 layers."""
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4}
    image: Any = {"trunk": "vit_base_patch16_clip_224", "args": args}
    text: Any = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2}
    return create_model(pool="cls", seed=seed, embed_dim=128, image=image, text=text).eval()


def lay_out(data: Path, folder: Path) -> None:
    """Link the sets into a folder, the full-size photos as a retrieval set."""
    for name in SETS:
        (folder / name).symlink_to(data / name)
    (folder / FULLSIZE).mkdir()
    (folder / FULLSIZE / "test").symlink_to(data / FULLSIZE)
    (folder / FULLSIZE / "dataset_type.txt").write_text("retrieval\n")


class Peer:
    """CLIP_benchmark in its own process, with its model built.

    Args:
        python: Python of its environment.
        model: the exported model.
        output: where it writes results.
        threads: OpenMP threads.
    """

    def __init__(self, python: Path, model: Path, output: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [python, ROOT / "benchmarks" / "eval_peer.py", model, output], env=environment(threads), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.model = model
        self.started = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None, "opened as a pipe"
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"CLIP_benchmark ended with {self.process.wait()}")
        return json.loads(line)

    def __call__(self, data: Path, options: Sequence[str]) -> dict[str, Any]:
        """Return seconds and metrics of one evaluation, or the error."""
        task = "zeroshot_retrieval" if SETS.get(data.name, "retrieval") == "retrieval" else "zeroshot_classification"
        arguments = {
            "--dataset": f"wds/{data.name}",
            "--dataset_root": str(data),
            "--task": task,
            "--model": f"local-dir:{self.model}",
            "--pretrained": "",
            "--num_workers": "1",
        }
        given = [part for pair in arguments.items() for part in pair]
        given += ["--recall_k", "1", "5", "10", "--quiet", *options]
        assert self.process.stdin is not None, "opened as a pipe"
        self.process.stdin.write(json.dumps({"arguments": given}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]  # opened as a pipe
        self.process.wait()


def peer_environment(folder: Path) -> Path:
    """Return the Python of the peer's environment, which is made on first use.

    Raises:
        SystemExit: there is no uv to make it with.
    """
    pins = [*PEER_PINS, *(f"{package}=={version(package)}" for package in SHARED_PACKAGES)]
    python, record = folder / "bin" / "python", folder / "pins.json"
    if record.exists() and json.loads(record.read_text()) == pins:
        return python
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit("uv is not on PATH: it makes CLIP_benchmark's environment (or name one with --peer_python)")
    subprocess.run([uv, "venv", "--no-config", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "--no-config", "--quiet", "--python", python, *pins], check=True)
    record.write_text(json.dumps(pins))
    return python


def fresh_tokenizers(models: Sequence[DualEncoder]) -> None:
    """Give the models tokenizers without remembered words, so that each evaluation is like a model's first."""
    for model in models:
        model.tokenizer = ClipTokenizer(model.text.context_length, cut=model.text.cuttable)


def ours(models: Sequence[DualEncoder], data: Path, output: Path) -> dict[str, Any]:
    """Evaluate models, from the path of the set to the results on disk."""
    fresh_tokenizers(models)
    begin = time.perf_counter()
    results = evaluate({str(i): model for i, model in enumerate(models)}, [open_set(SetConfig(str(data)))], CONFIG)
    write_results(results, output)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "metrics": {**results[0].evaluation.metrics, **results[0].evaluation.further}}


def texts_of(evalset: EvalSet) -> list[str]:
    """Return all texts of a set."""
    if evalset.task == "zeroshot":
        return prompts(evalset)
    records = evalset.records
    return flat_captions([records.texts(i) for i in range(len(records))])[0]


@torch.inference_mode()
def floor(model: DualEncoder, data: Path) -> dict[str, float]:
    """Return the seconds of each part that every evaluation needs."""
    fresh_tokenizers([model])
    evalset, marks = open_set(SetConfig(str(data))), []

    def mark() -> None:
        marks.append(time.perf_counter())

    records, texts, view = evalset.records, texts_of(evalset), centre_of(model)
    mark()
    images = [records.image(i) for i in range(len(records))]
    mark()
    pixels = torch.stack([view(image, i) for i, image in enumerate(images)])
    del images
    mark()
    rows = sorted(map(model.tokenizer.encode, texts), key=len)
    mark()
    for part in pixels.split(CONFIG.batch_size):
        F.normalize(model.image(part).embedding, dim=-1)
    mark()
    size = CONFIG.text_batch_size
    for tokens in [model.tokenizer.stack(rows[i : i + size], 1) for i in range(0, len(rows), size)]:
        F.normalize(model.text(tokens), dim=-1)
    mark()
    parts = ("decode", "resize", "tokenise", "image_tower", "text_tower")
    return dict(zip(parts, (b - a for a, b in pairwise(marks)), strict=True))


def watched(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a function, and the cores that were busy meanwhile, its own included."""
    busy, begin = busy_seconds(), time.perf_counter()
    found = function()
    used = busy_seconds()
    if busy is None or used is None:
        return found
    return {**found, "busy_cores": round((used - busy) / (time.perf_counter() - begin), 2)}


def measure_set(name: str, folder: Path, models: list[DualEncoder], peer: Peer, rounds: int) -> list[dict[str, Any]]:
    """Run ours, the lower bound and theirs in rounds, in alternating order."""
    rows = []
    for turn in range(rounds):
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            "ours": lambda: ours(models[:1], folder / name, folder.parent / "ours.json"),
            "floor": lambda: floor(models[0], folder / name),
            "theirs": lambda: peer(folder / name, ["--no_amp"]),
        }
        row: dict[str, Any] = {}
        for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            row[side] = watched(sides[side])
        row["floor"]["seconds"] = sum(value for key, value in row["floor"].items() if key != "busy_cores")
        rows.append(row)
        print(name, *(f"{side} {row[side].get('seconds', row[side].get('error'))}" for side in sides), flush=True)
    return rows


def measure_five(name: str, folder: Path, models: list[DualEncoder], rounds: int) -> list[dict[str, float]]:
    """Run one model and five, in alternating order."""
    rows = []
    for turn in range(rounds):
        row = {}
        for count in (1, len(models))[:: 1 if turn % 2 == 0 else -1]:
            row[str(count)] = ours(models[:count], folder / name, folder.parent / "ours.json")["seconds"]
        rows.append(row)
        print(name, "models", row, flush=True)
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the smallest, median and largest value."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def summary(rounds: dict[str, list[dict[str, Any]]], five: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return ratios for each set and for all sets, and the largest difference between figures."""

    def ratios(a: str, b: str) -> dict[str, dict[str, float]]:
        found = {name: spread([row[a]["seconds"] / row[b]["seconds"] for row in rows]) for name, rows in rounds.items()}
        whole = [
            statistics.fsum(statistics.median(row[side]["seconds"] for row in rows) for rows in rounds.values())
            for side in (a, b)
        ]
        return found | {"whole": {"median": whole[0] / whole[1]}}

    apart = {
        name: max(abs(row["ours"]["metrics"][metric] - value) for row in rows
                  for metric, value in row["theirs"]["metrics"].items())
        for name, rows in rounds.items()
    }  # fmt: skip
    return {
        "theirs / ours": ratios("theirs", "ours"),
        "ours / floor": ratios("ours", "floor"),
        "five models / one": {name: spread([row["5"] / row["1"] for row in rows]) for name, rows in five.items()},
        "largest difference of a figure": apart,
        "figures equal": max(apart.values()) <= TOLERANCE,
    }


def table(report: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = []
    for ratio, target in TARGETS.items():
        sign = "≥" if ratio == "theirs / ours" else "≤"
        for name, found in report["summary"][ratio].items():
            numbers = " / ".join(f"{found[key]:.2f}" for key in ("min", "median", "max") if key in found)
            lines.append(f"{ratio:<20}{name:<18}{numbers:<24}{sign} {target}")
    for name, rows in report["rounds"].items():
        sides = {side: statistics.median(row[side]["seconds"] for row in rows) for side in ("ours", "floor", "theirs")}
        parts = ", ".join(f"{key} {value:.2f}" for key, value in rows[0]["floor"].items() if key != "busy_cores")
        seconds = ", ".join(f"{side} {value:.2f} s" for side, value in sides.items())
        default = report["amp"].get(name, {})
        with_amp = default.get("seconds", default.get("error", "not run"))
        lines.append(f"{name}: {seconds}; theirs with amp: {with_amp}; floor: {parts}")
    lines.append(f"largest difference of a figure: {report['summary']['largest difference of a figure']}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with flickr8k_sample, cifar10, imagenet_sample (CLIP_benchmark's layout) and jpeg_fullsize",
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="rounds on the two large sets; the small ones have three times as many"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of both sides")
    parser.add_argument("--only", choices=[*SETS], help="measure one set only")
    parser.add_argument("--no_amp_run", action="store_true", help="leave out CLIP_benchmark with amp, its default")
    parser.add_argument("--peer_python", type=Path, help="Python of an environment with the versions in PEER_PINS")
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/eval_cpu_DEVICE.json)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    python = args.peer_python or peer_environment(cache_root() / "benchmarks" / "eval_peer_env")
    before = os.getloadavg()
    names = [args.only] if args.only else list(SETS)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sets"
        folder.mkdir()
        lay_out(args.data.expanduser().resolve(), folder)
        models = [tiny_model(seed) for seed in range(5)]
        for name in names:  # indexes the shards and warms both sides' first calls
            open_set(SetConfig(str(folder / name)))
        ours(models[:1], folder / "flickr8k_sample", folder.parent / "ours.json")
        peer = Peer(python, export(models[0], Path(place) / "model"), Path(place) / "theirs.json", args.threads)
        try:
            peer(folder / "flickr8k_sample", ["--no_amp"])
            rounds = {
                name: measure_set(name, folder, models, peer, args.rounds * (3 if name == "flickr8k_sample" else 1))
                for name in names
            }
            amp = {} if args.no_amp_run else {name: peer(folder / name, []) for name in rounds}
        finally:
            peer.close()
        five = {name: measure_five(name, folder, models, 3 * args.rounds) for name in (FULLSIZE, "flickr8k_sample")}
    packages = ("mmrep", "torch", "timm", "open_clip_torch", "pillow", "simplejpeg")
    report: dict[str, Any] = {
        "device": f"cpu-{os.cpu_count()}core",
        "processor": processor(),
        "commit": commit(),
        "threads": args.threads,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "peer": [*PEER_PINS],
        "load_before": before,
        "load_after": os.getloadavg(),
        "targets": TARGETS,
        "summary": summary(rounds, five),
        "rounds": rounds,
        "amp": amp,
        "models": five,
    }
    output = args.output or RESULTS / f"eval_cpu_{report['device']}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\nwritten: {output}")


if __name__ == "__main__":
    main()
