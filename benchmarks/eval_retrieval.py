"""Exact retrieval ranks in both directions, compared with the matrix product: `python benchmarks/eval_retrieval.py`.

5,000 images × 25,000 texts × 512 of random embeddings, in turns within one run: the product of all texts with all
images into a preallocated matrix, and `retrieval_metrics`, which gives all ranks, recall and mAP without the matrix.
Memory is what a fresh process holds at its peak beyond the embeddings, which lie in mapped files. `--large` does one
million texts × 100,000 images instead, without the product. Linux only.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from train_cpu import RESULTS, busy_seconds, commit, processor

from mmrep.evaluation.scoring.ranking import retrieval_metrics

CHUNK = 2**15
TARGETS = {"ours / product": 3, "peak MB": 200, "large peak MB": 2000}


def embeddings(images: int, captions: int, width: int, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Make images and texts close to them, of unit length, in mapped files, and return them and each text's image."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for name, count in (("images", images), ("texts", images * captions)):
        values = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, width))
        rows = torch.from_numpy(values)
        for start in range(0, count, CHUNK):
            part = F.normalize(torch.randn(min(CHUNK, count - start), width, generator=generator), dim=-1)
            if found:
                owner = torch.arange(start, start + len(part)) // captions
                part = F.normalize(part * 6 + found[0][owner], dim=-1)
            rows[start : start + len(part)] = part
        found.append(rows)
    return found[0], found[1], torch.arange(images).repeat_interleave(captions)


def anonymous() -> float:
    """Return the memory of this process in MB, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def memory(images: int, captions: int, folder: Path) -> dict[str, float]:
    """Return the seconds of one evaluation in this process, and its peak beyond the embeddings, read every 5 ms."""
    rows = [torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ("images", "texts")]
    retrieval_metrics(rows[0][:64], rows[1][:64], torch.arange(64))
    before, done, seen = anonymous(), threading.Event(), []

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    found = retrieval_metrics(rows[0], rows[1], torch.arange(images).repeat_interleave(captions))
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    recall = found.metrics["image_retrieval_recall@1"]
    return {"seconds": seconds, "peak_mb": max(seen) - before, "looks": len(seen), "recall@1": recall}


def timed(rounds: int, images: Tensor, texts: Tensor, owner: Tensor) -> list[dict[str, float]]:
    """Run both in alternating order, and record how many cores other processes used."""
    images, texts = images.clone(), texts.clone()
    space = torch.empty(len(texts), len(images))
    work = {
        "product": lambda: torch.mm(texts, images.T, out=space),
        "ours": lambda: retrieval_metrics(images, texts, owner),
    }
    for run in work.values():
        run()
    found = []
    for i in range(rounds):
        busy, own, wall = busy_seconds() or 0.0, time.process_time(), time.perf_counter()
        times = {}
        for name in sorted(work, reverse=bool(i % 2)):
            started = time.perf_counter()
            work[name]()
            times[name] = time.perf_counter() - started
        others = ((busy_seconds() or 0.0) - busy - (time.process_time() - own)) / (time.perf_counter() - wall)
        found.append({**times, "ratio": times["ours"] / times["product"], "other_cores": max(0.0, others)})
    return found


def main() -> None:
    """Measure what the options choose, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--quick", action="store_true", help="a smoke run whose numbers mean nothing")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    images, captions = (100_000, 10) if args.large else (5_000, 5)
    if args.quick:
        images //= 50
    if args.folder:
        print(json.dumps(memory(images, captions, args.folder)))
        return
    name = "eval_retrieval_large" if args.large else "eval_retrieval"
    device = f"cpu-{torch.get_num_threads()}core"
    content: dict[str, Any] = {
        "schema": 1, "benchmark": name, "device": device,
        "command": shlex.join(["python", "benchmarks/eval_retrieval.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"), "commit": commit(), "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{key: version(key) for key in ("mmrep", "numpy", "torch")}},
        "load_before": os.getloadavg(),
        "images": images, "texts": images * captions, "width": args.width, "targets": TARGETS,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        rows = embeddings(images, captions, args.width, Path(folder))
        command = [sys.executable, *sys.argv, "--folder", folder]
        content["memory"] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        if not args.large:
            found = timed(args.rounds, *rows)
            ratios, first = (
                [each["ratio"] for each in found],
                [min(each[k] for each in found) for k in ("ours", "product")],
            )
            content["rounds"] = found
            content["ratio"] = {
                "of_minima": first[0] / first[1],
                "min": min(ratios),
                "median": statistics.median(ratios),
            }
    content["load_after"] = os.getloadavg()
    text = json.dumps(content, indent=1) + "\n"
    print(text, end="")
    if not args.quick:
        (RESULTS / f"{name}_{device}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
