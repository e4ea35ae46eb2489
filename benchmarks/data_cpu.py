"""Decoding and transforms on CPUs, compared with open_clip's: `python benchmarks/data_cpu.py --data FOLDER`.

On one core, in turns within one run: open_clip's training transform, our path from file to training pixels (as uint8,
as normalised floats, with DCT scaling), and decoders alone. Then, on all cores, our loader end to end. Pixels are
compared with Pillow's for the same boxes.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, image_transform
from PIL import Image
from torch import Tensor
from train_cpu import QUIET, RESULTS, busy_seconds, commit, processor

from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.decode import decode_image, image_header
from mmrep.data.indexing import load_index
from mmrep.data.loader import Phase, Plan, Steps, batches
from mmrep.data.shards import image_extension, read_member
from mmrep.data.sources import Sources
from mmrep.data.transforms import CROP_DRAWS, random_crop_box, view
from mmrep.model.text_encoder import ClipTokenizer

SIZE = (224, 224)
MIN_SCALE = 0.9
"""The default of both sides."""
BATCH = 64
LARGE = 448
"""Short side from which DCT scaling can halve an image."""
MEAN, STD = (torch.tensor(x).view(3, 1, 1) * 255 for x in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
TARGETS = {
    "ours / open_clip": 2.2,
    "ours as floats / open_clip": 2.2,
    "ours / fastest decode": 0.6,
    "DCT scaling / ours, large images": 1.5,
    "loader / (cores x one core)": 0.9,
}
MEAN_DIFFERENCE = 1.0
"""Target for the mean difference between our pixels and Pillow's, in 1/255."""


class Work:
    """The paths that are measured, each on the i-th of the files.

    Args:
        files: encoded images.
        draws: (files, CROP_DRAWS) uniform draws.
    """

    def __init__(self, files: list[bytes], draws: np.ndarray) -> None:
        self.files, self.draws = files, draws
        self.transform = image_transform(SIZE[0], is_train=True)
        self.batch = torch.empty((BATCH, 3, *SIZE), dtype=torch.uint8)
        self.list: list[Tensor] = []

    def open_clip(self, i: int) -> None:
        """Make batches as open_clip's trainer does: Pillow, `image_transform(is_train=True)`, stack."""
        with io.BytesIO(self.files[i]) as stream:
            image = Image.open(stream)
            image.load()
            self.list.append(self.transform(image.convert("RGB")))
        if len(self.list) == BATCH:
            torch.stack(self.list)
            self.list.clear()

    def view(self, i: int, dct_scaling: bool = False) -> Tensor:
        """Return our training pixels."""
        draws = self.draws[i]
        return view(self.files[i], "random_resized", MIN_SCALE, SIZE, draws, False, dct_scaling=dct_scaling)

    def ours(self, i: int) -> None:
        """Make batches of uint8, as our loader does. The model normalises them on its device."""
        self.batch[i % BATCH] = self.view(i)

    def ours_float(self, i: int) -> None:
        """Make the same batches and normalise them, as open_clip's transform does."""
        self.ours(i)
        if i % BATCH == BATCH - 1:
            images = torch.empty(self.batch.shape)
            for pixels, out in zip(self.batch, images, strict=True):
                out.copy_(pixels).sub_(MEAN).div_(STD)

    def ours_dct(self, i: int) -> None:
        """Run `ours` with DCT scaling."""
        self.batch[i % BATCH] = self.view(i, True)

    def decode_pillow(self, i: int) -> None:
        """Decode the pixels to an array."""
        np.asarray(Image.open(io.BytesIO(self.files[i])).convert("RGB"))

    def decode_simplejpeg(self, i: int) -> None:
        """Decode the pixels to an array."""
        simplejpeg.decode_jpeg(self.files[i])

    def reference(self, i: int) -> np.ndarray:
        """Return Pillow's pixels for the box of `view`."""
        image = Image.open(io.BytesIO(self.files[i])).convert("RGB")
        top, left, h, w = random_crop_box(image.height, image.width, MIN_SCALE, self.draws[i])
        return np.asarray(image.crop((left, top, left + w, top + h)).resize(SIZE[::-1], Image.Resampling.BICUBIC))


@contextmanager
def one_core() -> Iterator[None]:
    """Restrict this process to one core and torch to one thread within the context."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, cores)


def timed(work: Callable[[], int]) -> dict[str, float]:
    """Return the images per second of `work`, which returns their number, and the cores that other processes used."""
    own, everyone, begin = cpu_seconds(), busy_seconds() or 0, time.perf_counter()
    count = work()
    seconds = time.perf_counter() - begin
    others = (busy_seconds() or 0) - everyone - (cpu_seconds() - own)
    return {"rate": count / seconds, "others": round(max(0.0, others / seconds), 2)}


def cpu_seconds() -> float:
    """Return the processor time of this process and of its running and finished loader workers."""
    ticks = 0
    for worker in multiprocessing.active_children():
        with suppress(OSError):
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")


def measure_one_core(work: Work, large: list[int], rounds: int) -> list[dict[str, Any]]:
    """Run every path once per round over all files (the large ones several times), each round in another order."""
    everything = list(range(len(work.files)))
    several = large * max(1, len(everything) // (2 * len(large)))
    paths: dict[str, tuple[Callable[[int], Any], list[int]]] = {
        "open_clip": (work.open_clip, everything),
        "ours": (work.ours, everything),
        "ours_float": (work.ours_float, everything),
        "ours_dct": (work.ours_dct, everything),
        "decode_pillow": (work.decode_pillow, everything),
        "decode_simplejpeg": (work.decode_simplejpeg, everything),
        "ours_large": (work.ours, several),
        "ours_dct_large": (work.ours_dct, several),
    }

    def run(name: str) -> int:
        path, chosen = paths[name]
        for i in chosen:
            path(i)
        return len(chosen)

    names = list(paths)
    rows = []
    with one_core():
        for name in names:
            run(name)
        for turn in range(rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            if turn % 2:
                order.reverse()
            rows.append({name: timed(lambda name=name: run(name)) for name in order})
    return rows


def end_to_end(shards: str, rounds: int, steps: int) -> list[dict[str, Any]]:
    """Measure our loader with one worker per core, in turns with the same batches made by one core."""
    cores = len(os.sched_getaffinity(0))
    source = SourceConfig(shards, caption="txt")
    config = DataConfig(train=[source], min_scale=MIN_SCALE, workers=cores)
    warm = 2 * cores
    plan = Plan(seed=0, global_batch=BATCH, steps=warm + steps, phases=(Phase(0, SIZE, (196, 196)),))
    made = Steps(Sources(config), config, ClipTokenizer(77, cut=True), plan, 0, 1)

    def alone() -> int:
        with one_core():
            for step in range(warm, warm + steps // cores):
                made.load(step)
        return steps // cores * BATCH

    rows = []
    for _ in range(rounds):
        single = timed(alone)
        loaded = batches(made, 0, cores, prefetch=2)
        for _ in range(warm):
            next(loaded)
        many = timed(lambda loaded=loaded: sum(len(item.batch.images) for item in loaded))
        rows.append({"one_core": single, "loader": many})
    return rows


def differences(work: Work, large: list[int]) -> dict[str, dict[str, float]]:
    """Return the differences of pixels in 1/255: mean of all, largest mean of an image, largest of all."""

    def spread(pairs: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        gaps = [np.abs(a.astype(int) - b.astype(int)) for a, b in pairs]
        means = [float(gap.mean()) for gap in gaps]
        largest = max(int(gap.max()) for gap in gaps)
        return {"mean": statistics.fmean(means), "worst_image": max(means), "max": largest, "images": len(gaps)}

    def ours(i: int, dct_scaling: bool = False) -> np.ndarray:
        return work.view(i, dct_scaling).permute(1, 2, 0).numpy()

    everything = range(len(work.files))
    full = {i: np.asarray(Image.open(io.BytesIO(work.files[i])).convert("RGB")) for i in everything}
    decoded = ((decode_image(work.files[i]).permute(1, 2, 0).numpy(), full[i]) for i in everything)
    return {
        "decoded image from Pillow's": spread(decoded),
        "ours from Pillow's crop and resize": spread((ours(i), work.reference(i)) for i in everything),
        "DCT scaling from ours": spread((ours(i, True), ours(i)) for i in everything),
        "DCT scaling from ours, large images": spread((ours(i, True), ours(i)) for i in large),
    }


def summary(rows: list[dict[str, Any]], loaded: list[dict[str, Any]], cores: int) -> dict[str, dict[str, Any]]:
    """Return for each target the smallest, median and largest ratio of a round, and whether the median meets it.

    All rounds count; `undisturbed` is the median over those in which other processes took at most `QUIET` cores.
    """

    def ratios(top: str, *below: str, rows: list[dict[str, Any]] = rows, times: int = 1) -> list[tuple[float, bool]]:
        return [
            (
                row[top]["rate"] / max(row[name]["rate"] for name in below) / times,
                all(row[name]["others"] <= QUIET for name in (top, *below)),
            )
            for row in rows
        ]

    found = {
        "ours / open_clip": ratios("ours", "open_clip"),
        "ours as floats / open_clip": ratios("ours_float", "open_clip"),
        "ours / fastest decode": ratios("ours", "decode_pillow", "decode_simplejpeg"),
        "DCT scaling / ours, large images": ratios("ours_dct_large", "ours_large"),
        "DCT scaling / ours, all images": ratios("ours_dct", "ours"),
        "loader / (cores x one core)": ratios("loader", "one_core", rows=loaded, times=cores),
    }
    result: dict[str, dict[str, Any]] = {}
    for name, pairs in found.items():
        values, calm = [value for value, _ in pairs], [value for value, quiet in pairs if quiet]
        middle, target = statistics.median(values), TARGETS.get(name)
        result[name] = {
            "min": min(values),
            "median": middle,
            "max": max(values),
            "rounds": len(values),
            "undisturbed": {"median": statistics.median(calm), "rounds": len(calm)} if calm else None,
            "target": target,
            "met": None if target is None else middle >= target,
        }
    return result


def table(report: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = [f"{'images/s, median of the rounds':<40}"]
    lines += [f"  {name:<38}{rate:>8.0f}" for name, rate in report["rates"].items()]
    lines.append(f"{'ratio':<40}{'min':>8}{'median':>8}{'max':>8}  undisturbed     target")
    for name, row in report["summary"].items():
        verdict = "" if row["target"] is None else f"≥ {row['target']}: {'met' if row['met'] else 'missed'}"
        calm = row["undisturbed"]
        quiet = f"{calm['median']:.2f} ({calm['rounds']} of {row['rounds']})" if calm else "none"
        lines.append(f"  {name:<38}{row['min']:>8.2f}{row['median']:>8.2f}{row['max']:>8.2f}  {quiet:<16}{verdict}")
    lines.append(f"{'difference of pixels, 1/255':<40}{'mean':>8}{'image':>8}{'max':>8}")
    for name, row in report["differences"].items():
        lines.append(f"  {name:<38}{row['mean']:>8.3f}{row['worst_image']:>8.3f}{row['max']:>8}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--data",
        required=True,
        help="folder of shards (*.tar) with jpg and txt: about 100 photos, some with a short side of at least 448",
    )
    parser.add_argument("--rounds", type=int, default=16, help="rounds on one core")
    parser.add_argument("--loader_rounds", type=int, default=6, help="rounds of the loader")
    parser.add_argument("--steps", type=int, default=40, help="batches in a round of the loader")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one short round each")
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/data_cpu_DEVICE.json)")
    args = parser.parse_args()
    rounds, loader_rounds, steps = (1, 1, 4) if args.quick else (args.rounds, args.loader_rounds, args.steps)
    cores = len(os.sched_getaffinity(0))
    files = []
    for path in sorted(Path(args.data).glob("*.tar")):
        index = load_index(path)
        files += [read_member(index, row, image_extension(index, row)) for row in range(len(index))]
    work = Work(files, np.random.default_rng(0).random((len(files), CROP_DRAWS)))
    large = [i for i, data in enumerate(files) if min(image_header(data)[:2]) >= LARGE]
    before = os.getloadavg()
    rows = measure_one_core(work, large, rounds)
    loaded = end_to_end(args.data, loader_rounds, steps)
    rates = {name: statistics.median(row[name]["rate"] for row in rows) for name in rows[0]}
    rates |= {name: statistics.median(row[name]["rate"] for row in loaded) for name in ("one_core", "loader")}
    names = ("mmrep", "torch", "torchvision", "open_clip_torch", "numpy", "pillow", "simplejpeg")
    report = {
        "schema": 1,
        "benchmark": "data_cpu",
        "device": f"cpu-{cores}core",
        "command": f"python benchmarks/data_cpu.py --data {Path(args.data).name} --rounds {rounds} "
        f"--loader_rounds {loader_rounds} --steps {steps}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        "load_before": before,
        "load_after": os.getloadavg(),
        "images": {"all": len(files), "large": len(large), "bytes": statistics.fmean(map(len, files))},
        "rates": rates,
        "summary": summary(rows, loaded, cores),
        "differences": differences(work, large),
        "rounds": rows,
        "loader_rounds": loaded,
    }
    output = args.output or RESULTS / f"data_cpu_{report['device']}{'_quick' * args.quick}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\nwritten: {output}")


if __name__ == "__main__":
    main()
