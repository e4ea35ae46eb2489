"""The order of a run at scale: `python benchmarks/data_scale.py`.

Simulates 2·10^9 samples in 200,000 shards: time and memory until the plan of a run is ready, time of a sample's id.
Reads a smaller set from disk: memory stays bounded when every shard is read from. Measures how well block shuffle
mixes, compared with a full shuffle and with webdataset.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

# Measured processes run this file too: what they don't need is imported where it is used.

SHARDS, SAMPLES = 200_000, 10_000
"""Shards of the simulated set, and their samples on average."""
GLOBAL_BATCH = 32_768
TARGETS = {"plan_seconds": 2.0, "peak_mb": 300, "us_an_id": 20.0}
SMALL = 2_000
"""Shards of the set on disk, and of the one that mixing is measured on."""
STREAMS = 64
"""Processes of the webdataset run of which each makes its share of a batch from its own shards."""
BUFFER, INITIAL = 5_000, 1_000
"""Samples of open_clip's shuffle buffer, and how many it waits for."""
PARTS: dict[str, Callable[..., dict[str, Any]]] = {}


def part(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Register a part that is measured in its own process."""
    PARTS[work.__name__] = work
    return work


def fresh(name: str, cache: Path, **arguments: Any) -> dict[str, Any]:
    """Run a part in a new process, and return what it measured."""
    command = [sys.executable, __file__, "--part", name, json.dumps(arguments)]
    environment = os.environ | {"MMREP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def memory(name: str) -> float:
    """Return the MB of this process: VmRSS now, VmHWM at most (ru_maxrss would include the parent process)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(fields[name].split()[0]) / 1024, 1)


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    """Record the seconds that the context takes."""
    begin = time.perf_counter()
    yield
    into[name] = round(time.perf_counter() - begin, 4)


def imported(result: dict[str, Any], torch: bool = False) -> Any:
    """Import the data engine, record time and memory, and return (Sources, Order, DataConfig, …)."""
    with timed(result, "import_seconds"):
        from mmrep.config import data as config
        from mmrep.data.order import Order
        from mmrep.data.sources import Sources

        if torch:
            import mmrep.data.loader  # noqa: F401  # for the memory that it takes
    result["baseline_mb"] = memory("VmRSS")
    return Sources, Order, config


# The simulated set


def write_simulated(place: Path, seed: int) -> None:
    """Return a catalog of SHARDS shards with SAMPLES samples on average, 10% more or less."""
    import numpy as np

    from mmrep.data.catalog import Catalog, write_catalog

    rng = np.random.default_rng(seed)
    spread = rng.integers(0, SAMPLES // 10 + 1, SHARDS // 2)
    catalog = Catalog(
        addresses=np.array([f"{place.parent}/shards/{i:08d}.tar".encode() for i in range(SHARDS)]),
        samples=SAMPLES + np.stack([spread, -spread], axis=1).ravel(),
        sizes=rng.integers(350 << 20, 450 << 20, SHARDS),
        digests=np.array([rng.bytes(16).hex().encode() for _ in range(SHARDS)]),
        identities=rng.integers(0, 2**64, SHARDS, dtype=np.uint64),
        listed=np.zeros(SHARDS, dtype=np.int64),
    )
    write_catalog(catalog, place)


def simulated(config: Any, catalogs: list[str], fraction: float = 0.0) -> Any:
    """Return the config of one or several simulated sources. Several sources have weights."""
    weights = [None] if len(catalogs) == 1 else [0.5, 0.3, 0.2]
    sources = [config.SourceConfig(place, weight=weight) for place, weight in zip(catalogs, weights, strict=True)]
    return config.DataConfig(sources, config.ValidationConfig(fraction=fraction))


@part
def plan(catalogs: list[str], fraction: float, torch: bool) -> dict[str, Any]:
    """Measure from a catalog to the ids of the first global batch, and the digest that a resume compares."""
    result: dict[str, Any] = {"fraction": fraction, "torch": torch, "sources": len(catalogs)}
    sources_of, order_of, config = imported(result, torch)
    data = simulated(config, catalogs, fraction)
    with timed(result, "plan_seconds"):
        sources = sources_of(data)
        order = order_of(sources.groups, sources.weights, 0, data.shuffle_block)
        order.slots(0, GLOBAL_BATCH)
    result |= {"samples": len(sources), "peak_mb": memory("VmHWM")}
    with timed(result, "digest_seconds"):
        sources.digest()
        sources.identity()
    result["peak_with_digest_mb"] = memory("VmHWM")
    return result


@part
def ids(catalogs: list[str], world: int, stride: int, first: int, steps: int) -> dict[str, Any]:
    """Measure the ids of a process's share of every `stride`-th step from `first` on, and of the first step alone."""
    result: dict[str, Any] = {"sources": len(catalogs), "world": world, "stride": stride, "first_step": first}
    sources_of, order_of, config = imported(result)
    data = simulated(config, catalogs)
    sources = sources_of(data)
    order = order_of(sources.groups, sources.weights, 0, data.shuffle_block)
    local = GLOBAL_BATCH // world
    with timed(result, "first_step_seconds"):
        order.slots(first * GLOBAL_BATCH, local)
    with timed(result, "seconds"):
        for step in range(1, steps + 1):
            order.slots((first + step * stride) * GLOBAL_BATCH, local)
    result |= {
        "steps": steps,
        "us_an_id": round(1e6 * result["seconds"] / (steps * local), 2),
        "ms_a_step": round(1e3 * result["seconds"] / steps, 2),
        "us_an_id_of_the_global_batch": round(1e6 * result["seconds"] / (steps * GLOBAL_BATCH), 3),
        "peak_mb": memory("VmHWM"),
    }
    return result


# The set on disk


def write_small(folder: Path, samples: int = 1_000) -> None:
    """Make SMALL shards with long keys, all links to one file, to measure their indexes."""
    folder.mkdir()
    first = folder / "00000.tar"
    with tarfile.open(first, "w") as tar:
        for i in range(samples):
            for extension in ("jpg", "txt"):
                info = tarfile.TarInfo(f"a_key_as_long_as_those_of_some_crawls_{i:08d}.{extension}")
                info.size = 16
                tar.addfile(info, BytesIO(b"some bytes of it"))
    for shard in range(1, SMALL):
        (folder / f"{shard:05d}.tar").hardlink_to(first)


@part
def start(shards: str) -> dict[str, Any]:
    """Start with whatever is in the cache."""
    result: dict[str, Any] = {}
    sources_of, _, config = imported(result)
    with timed(result, "seconds"):
        sources = sources_of(config.DataConfig([config.SourceConfig(shards)]))
    return result | {"samples": len(sources), "peak_mb": memory("VmHWM")}


@part
def catalog(shards: str, place: str) -> dict[str, Any]:
    """Write a catalog file."""
    from mmrep.data.catalog import catalog_of, write_catalog
    from mmrep.data.paths import local_shards

    write_catalog(catalog_of(local_shards([shards])), Path(place))
    return {}


@part
def read(shards: str) -> dict[str, Any]:
    """Read samples of every shard in random order, twice; then repeatedly from one block."""
    import numpy as np

    from mmrep.data.shards import read_member

    result: dict[str, Any] = {}
    sources_of, order_of, config = imported(result)
    sources = sources_of(config.DataConfig([config.SourceConfig(shards)]))
    result["after_start_mb"] = memory("VmRSS")
    rng = np.random.default_rng(0)
    everywhere = sources._first[np.concatenate([rng.permutation(SMALL) for _ in range(2)])]
    all_bytes = 0
    with timed(result, "seconds"):
        for number in everywhere.tolist():
            sample = sources.sample(number)
            read_member(sample.shard, sample.row, "txt")
            all_bytes += sample.shard.nbytes
    result |= {
        "all_indexes_mb": round(all_bytes / 2 / 2**20, 1),
        "kept_indexes_mb": round(sum(kept.shard.nbytes for kept in sources._opened.values()) / 2**20, 1),
        "us_a_sample_of_another_shard": round(1e6 * result.pop("seconds") / len(everywhere), 1),
        "peak_mb": memory("VmHWM"),
    }
    order = order_of(sources.groups, sources.weights, 0, 1 << 17)
    within = order.slots(0, 1 << 16)[1].tolist()
    for _ in range(2):
        with timed(result, "block_seconds"):
            for number in within:
                sample = sources.sample(number)
                read_member(sample.shard, sample.row, "txt")
    result["us_a_sample_of_one_block"] = round(1e6 * result.pop("block_seconds") / len(within), 1)
    return result


# Mixing


def webdataset_epoch(epoch: int, streams: int, batch: int) -> Any:
    """Return positions in the order of open_clip's pipeline: shards shuffled, dealt to `streams` processes,
    each with a shuffle buffer of its own (webdataset's filter), a batch made of an equal share of each."""
    import random

    import numpy as np
    import webdataset

    shards = np.random.default_rng(epoch).permutation(SMALL)
    parts = []
    for stream in range(streams):
        own = (shards[stream::streams, None] * SAMPLES + np.arange(SAMPLES)).ravel()
        shuffle = webdataset.shuffle(BUFFER, initial=INITIAL, rng=random.Random(epoch << 16 | stream))
        parts.append(np.fromiter(shuffle(iter(own.tolist())), dtype=np.int64, count=len(own)))
    share = batch // streams
    turns = min(len(own) for own in parts) // share
    return np.stack([own[: turns * share].reshape(turns, share) for own in parts], axis=1).ravel()


def mixing(first: Any, second: Any, batch: int) -> dict[str, Any]:
    """Compare two epochs (positions, in order of slots) with full shuffles."""
    import numpy as np

    size, count = SMALL * SAMPLES, len(first) // batch
    batches = first[: count * batch].reshape(count, batch)
    even = batch / SMALL
    distinct, unlike = np.empty(count), np.empty(count)
    for i, positions in enumerate(batches):
        drawn = np.bincount(positions // SAMPLES, minlength=SMALL)
        distinct[i] = np.count_nonzero(drawn)
        unlike[i] = ((drawn - even) ** 2).sum() / even / (SMALL - 1)
    step_of = [np.full(size, -1, dtype=np.int32) for _ in range(2)]
    for steps, epoch in zip(step_of, (first, second), strict=True):
        kept = epoch[: len(epoch) // batch * batch]
        steps[kept] = np.arange(len(kept)) // batch
    chance = (batch - 1) / (size - 1)
    by_shard = step_of[0].reshape(SMALL, SAMPLES)
    neighbours = (by_shard[:, :-1] == by_shard[:, 1:]) & (by_shard[:, 1:] >= 0)
    rng = np.random.default_rng(0)
    one, other = batches[rng.integers(0, count, 4_000_000)[:, None], rng.integers(0, batch, (4_000_000, 2))].T
    again = (step_of[1][one] == step_of[1][other]) & (one != other) & (step_of[1][one] >= 0)
    slots = rng.integers(0, len(first), 4_000_000)
    return {
        "batch": batch,
        "shards_a_batch": {"min": int(distinct.min()), "mean": round(float(distinct.mean()), 1)},
        "shards_a_batch_full_shuffle": round(SMALL * (1 - (1 - batch / size) ** SAMPLES), 1),
        "neighbours_together_ratio": round(float(np.mean(neighbours)) / chance, 2),
        "together_again_ratio": round(float(np.mean(again)) / chance, 2),
        "rank_correlation": round(float(np.corrcoef(slots, first[slots])[0, 1]), 4),
        "class_variance_ratio": {"mean": round(float(unlike.mean()), 2), "max": round(float(unlike.max()), 2)},
    }


@part
def mix(kind: str, block: int, streams: int) -> dict[str, Any]:
    """Measure one way of shuffling on two epochs of SMALL shards with SAMPLES samples."""
    import numpy as np

    from mmrep.data.order import Order

    rows = []
    size = SMALL * SAMPLES
    order = Order([np.full(SMALL, SAMPLES)], [1.0], 0, block)
    epochs = [order.slots(epoch * size, size)[1] for epoch in range(2)] if kind == "ours" else []
    del order
    for batch in (4_096, GLOBAL_BATCH):
        if kind == "webdataset":
            epochs = [webdataset_epoch(epoch, streams, batch) for epoch in range(2)]
        rows.append(mixing(*epochs, batch))
        gc.collect()
    return {"kind": kind, "block": block, "streams": streams, "batches": rows}


WAYS = {
    "full shuffle": ("ours", 1 << 25, 0),
    "blocks of 2^20": ("ours", 1 << 20, 0),
    "blocks of 2^17": ("ours", 1 << 17, 0),
    "webdataset, one process": ("webdataset", 1, 1),
    f"webdataset, {STREAMS} processes": ("webdataset", 1, STREAMS),
}


# All of it


def measure(scratch: Path, quick: bool) -> dict[str, Any]:
    """Run every part."""
    cache = scratch / "cache"
    catalogs = [str(scratch / f"set{i}" / "catalog.npz") for i in range(3)]
    for i, place in enumerate(catalogs):
        write_simulated(Path(place), i)
    one = catalogs[:1]
    plans = [
        fresh("plan", cache, catalogs=sources, fraction=fraction, torch=torch)
        for sources, fraction, torch in ((one, 0, False), (one, 0.001, False), (one, 0, True), (catalogs, 0, False))
    ]
    epoch = SHARDS * SAMPLES // GLOBAL_BATCH
    late = 3 * epoch + 41_234
    """Return a step of epoch 3 within a block."""
    cases = [(one, 1, 1, 0), (one, 1, 1, late), (one, 256, 1, late), (one, 1, 64, late), (one, 256, 8, late)]
    cases += [(one, 256, 64, late), (catalogs, 1, 1, late), (catalogs, 256, 1, late)]
    rows = [
        fresh("ids", cache, catalogs=sources, world=world, stride=stride, first=first, steps=8 if quick else 96)
        for sources, world, stride, first in cases
    ]
    shards, place = f"{scratch}/small/{{00000..{SMALL - 1:05d}}}.tar", str(scratch / "small.npz")
    write_small(scratch / "small")
    starts = {"nothing": fresh("start", cache, shards=shards), "cached catalog": fresh("start", cache, shards=shards)}
    fresh("catalog", cache, shards=shards, place=place)
    starts["catalog file"] = fresh("start", cache, shards=place)
    ways = dict(list(WAYS.items())[1:2]) if quick else WAYS
    return {
        "plans": plans,
        "ids": rows,
        "starts": starts,
        "read": fresh("read", cache, shards=place),
        "mixing": {
            name: fresh("mix", cache, kind=kind, block=block, streams=streams)
            for name, (kind, block, streams) in ways.items()
        },
    }


def table(report: dict[str, Any]) -> str:
    """Return the results as text."""
    seconds, mb, us = TARGETS.values()
    lines = [f"plan: sources, validation, torch → seconds (≤ {seconds}), peak MB (≤ {mb})"]
    lines += [
        f"  {row['sources']} {row['fraction']:<6} {row['torch']!s:<6}→ {row['plan_seconds']:.2f} s, "
        f"{row['peak_mb']:.0f} MB (import {row['import_seconds']:.2f} s, {row['baseline_mb']:.0f} MB; "
        f"digest {row['digest_seconds']:.2f} s)"
        for row in report["plans"]
    ]
    lines.append(f"ids: sources, world, every n-th step, first step → µs an id (≤ {us:.0f})")
    lines += [
        f"  {row['sources']} {row['world']:>4} {row['stride']:>3} {row['first_step']:>7} → {row['us_an_id']:>8.2f} µs, "
        f"{row['ms_a_step']:>6.1f} ms a step, first {row['first_step_seconds']:.2f} s, {row['peak_mb']:.0f} MB"
        for row in report["ids"]
    ]
    lines += [
        f"start from {name}: {row['seconds']:.2f} s, {row['peak_mb']} MB" for name, row in report["starts"].items()
    ]
    lines.append(f"read: {json.dumps(report['read'])}")
    for name, way in report["mixing"].items():
        for row in way["batches"]:
            lines.append(f"{name}: {json.dumps(row)}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the results."""
    from train_cpu import RESULTS, commit, processor

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run: few steps, one way of shuffling")
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/data_scale_DEVICE.json)")
    args = parser.parse_args()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Path(scratch), args.quick)
    report = {
        "schema": 1,
        "benchmark": "data_scale",
        "device": f"cpu-{len(os.sched_getaffinity(0))}core",
        "command": f"python benchmarks/data_scale.py{' --quick' * args.quick}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("mmrep", "numpy", "webdataset")}},
        "load_before": before,
        "load_after": os.getloadavg(),
        "targets": TARGETS,
        **measured,
    }
    output = args.output or RESULTS / f"data_scale_{report['device']}{'_quick' * args.quick}.json"
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\nwritten: {output}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(json.dumps(PARTS[sys.argv[2]](**json.loads(sys.argv[3]))))
    else:
        main()
