"""Pooling heads, compared with a copy of their input: `python benchmarks/pooling.py`. A GPU is used if there is one.

In turns within one run: a copy of the tokens, their mean and maximum, ggem in plain PyTorch and as the fused operation,
forward, backward and both. Then every head, forward and backward, compared with a copy of the same tokens and with the
training step of a ViT-B/16 image tower; and the time of that step with ggem instead of avg.
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_cpu import RESULTS, commit, processor

from mmrep.config.model import ImageConfig
from mmrep.config.pooling import PoolConfig
from mmrep.model.image_encoder import ImageEncoder
from mmrep.pooling import PoolingHead, Tokens, build_pool, list_pools
from mmrep.pooling.gem import generalized_mean
from mmrep.pooling.kernels import reference

WIDTH, HEADS, GRID = 768, 12, (14, 14)
PATCHES = GRID[0] * GRID[1]
EXPONENT = 3.1
"""Not a whole number, as learned ones are not."""
TRUNK = "vit_base_patch16_clip_224"
TARGETS = {
    "cpu": {"ggem / mean, forward + backward": 2.0},
    "cuda": {"ggem forward, bandwidth / copy's": 0.85, "ggem backward, bandwidth / copy's": 0.85},
}
STEP_TARGET = 1.0
"""Per cent that ggem may add to a step with avg, on GPUs."""

Work = Callable[[], Any]


class Timer:
    """Seconds of a call; on GPUs the device's own, with a cold cache and the host far enough ahead."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            # Twice the second-level cache of an H100: a tensor of these sizes would else stay in it.
            self.flush = torch.empty(100 * 2**20, dtype=torch.uint8, device=device)

    def __call__(self, work: Work) -> float:
        if self.device.type == "cpu":
            begin = time.perf_counter()
            work()
            return time.perf_counter() - begin
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        self.flush.zero_()
        # Python takes longer to launch these kernels than they run: the device waits, so that no gap is counted.
        torch.cuda._sleep(2_000_000)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def rounds(self, works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
        """Run every call once per round, each round in another order, after one round that does not count."""
        names = list(works)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(-1, rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for name in order[:: -1 if turn % 2 else 1]:
                taken = self(works[name])
                if turn >= 0:
                    seconds[name].append(taken)
        return seconds


def both_ways(name: str, pool: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> dict[str, Work]:
    """Return the calls of a pooling: forward, backward and both."""
    kept = pool(*inputs)
    grad = grad.to(kept.dtype)
    return {
        f"{name} forward": lambda: pool(*inputs),
        f"{name} backward": lambda: torch.autograd.grad(kept, inputs, grad, retain_graph=True),
        f"{name} both": lambda: torch.autograd.grad(pool(*inputs), inputs, grad),
    }


def plain(x: Tensor, p: Tensor) -> Tensor:
    """Pool with ggem in plain PyTorch."""
    return reference.power_mean(x, p, 1e-6, "clamp").to(x.dtype)


def kernels(x: Tensor, timer: Timer, rounds: int) -> dict[str, Any]:
    """Measure the poolings on one tensor."""
    p = torch.full((WIDTH,), EXPONENT, device=x.device, requires_grad=True)
    grad = torch.randn(x.shape[0], WIDTH, device=x.device)
    leaf, out = x.detach().clone().requires_grad_(), torch.empty_like(x)
    works: dict[str, Work] = {"copy": lambda: out.copy_(x)}
    works |= both_ways("mean", lambda x: x.mean(1), [leaf], grad)
    works |= both_ways("max", lambda x: x.amax(1), [leaf], grad)
    works |= both_ways("plain ggem", plain, [leaf, p], grad)
    works |= both_ways("ggem", generalized_mean, [leaf, p], grad)
    seconds = timer.rounds(works, rounds)
    found = {"ggem / mean, forward + backward": ratios(seconds["ggem both"], seconds["mean both"])}
    found["plain ggem / ggem, forward + backward"] = ratios(seconds["plain ggem both"], seconds["ggem both"])
    # A copy moves the tokens twice, a forward pass once, a backward pass twice.
    for direction, share in (("forward", 0.5), ("backward", 1.0)):
        pairs = ratios(seconds["copy"], seconds[f"ggem {direction}"])
        found[f"ggem {direction}, bandwidth / copy's"] = {key: value * share for key, value in pairs.items()}
    targets = TARGETS[x.device.type]
    return {
        "shape": list(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "ratios": {name: ratios(taken, seconds["copy"]) for name, taken in seconds.items()},
        "summary": {name: verdict(row, targets.get(name), "bandwidth" in name) for name, row in found.items()},
        "copy_gb_per_s": 2 * x.nbytes / statistics.median(seconds["copy"]) / 1e9,
        "memory": memory(leaf, p),
        "seconds": seconds,
    }


def ratios(top: list[float], below: list[float]) -> dict[str, float]:
    """Return the ratios of the shortest and of the median times, and the median of the ratios of a round."""
    return {
        "min": min(top) / min(below),
        "median": statistics.median(top) / statistics.median(below),
        "round": statistics.median(a / b for a, b in zip(top, below, strict=True)),
    }


def verdict(row: dict[str, float], target: float | None, larger: bool) -> dict[str, Any]:
    """Return the ratios with their target, which the median must meet."""
    met = None if target is None else (row["median"] >= target if larger else row["median"] <= target)
    return {**row, "target": target, "met": met}


def memory(x: Tensor, p: Tensor) -> dict[str, float]:
    """Return what ggem keeps besides its input, in bytes and as a multiple of its result in the accumulation type."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        pooled = generalized_mean(x, p)
        kept, peak = torch.cuda.memory_allocated() - base, torch.cuda.max_memory_allocated() - base
        torch.autograd.grad(pooled.sum(), [x, p])
        backward = torch.cuda.max_memory_allocated() - base - x.nbytes
        found = {"kept": kept, "forward_peak": peak, "backward_peak_besides_gradient": backward}
    else:
        storages: dict[int, int] = {}

        def note(saved: Tensor) -> Tensor:
            storages[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            pooled = generalized_mean(x, p)
        for given in (x, p):
            storages.pop(given.untyped_storage().data_ptr(), None)
        found = {"kept": sum(storages.values())}
    statistic = 4 * x.shape[0] * WIDTH
    return {**found, "statistic": statistic, "kept_in_statistics": found["kept"] / statistic}


def head_step(head: PoolingHead, tokens: Tokens) -> None:
    """Run a head forward and backward."""
    pooled = head(tokens)
    loss = sum(embedding.float().square().mean() for embedding in (pooled.embedding, *pooled.auxiliary))
    inputs = [tokens.prefix, tokens.patches, *tokens.stages, *(p for p in head.parameters() if p.requires_grad)]
    torch.autograd.grad(loss, inputs, allow_unused=True)


def tower_step(tower: ImageEncoder, images: Tensor, autocast: bool) -> None:
    """Run an image tower forward and backward."""
    tower.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
        loss = tower(images).embedding.float().square().mean()
    loss.backward()


def heads(device: torch.device, batch: int, rounds: int, timer: Timer) -> dict[str, Any]:
    """Compare every head with a copy, and with a training step of the tower without its head."""
    autocast = device.type == "cuda"
    dtype = torch.bfloat16 if autocast else torch.float32

    def drawn(count: int) -> Tensor:
        return torch.randn(batch, count, WIDTH, device=device).to(dtype).requires_grad_()

    prefix, patches = drawn(1), drawn(PATCHES)
    out = torch.empty_like(patches)
    works: dict[str, Work] = {"copy": lambda: out.copy_(patches)}
    parameters = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for name in list_pools():
            head = build_pool(name, dim=WIDTH, num_heads=HEADS).to(device)
            parameters[name] = sum(p.numel() for p in head.parameters())
            tokens = Tokens(prefix, patches, GRID, None, tuple(drawn(PATCHES) for _ in range(head.num_stages)))
            works[name] = lambda head=head, tokens=tokens: head_step(head, tokens)
        seconds = timer.rounds(works, rounds)
    images = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    steps = {}
    for name in ("avg", "ggem"):
        tower = ImageEncoder(ImageConfig(trunk=TRUNK), PoolConfig(name), 512, seed=0).to(device)
        steps[name] = lambda tower=tower: tower_step(tower, images, autocast)
    step_seconds = timer.rounds(steps, rounds)
    trunk = statistics.median(step_seconds["avg"]) - statistics.median(seconds["avg"])
    rows = {}
    for name in list_pools():
        own = statistics.median(seconds[name])
        rows[name] = {**ratios(seconds[name], seconds["copy"]), "share_of_step_percent": 100 * own / (trunk + own)}
        rows[name]["parameters"] = parameters[name]
    added = [100 * (a / b - 1) for a, b in zip(step_seconds["ggem"], step_seconds["avg"], strict=True)]
    fastest = 100 * (min(step_seconds["ggem"]) / min(step_seconds["avg"]) - 1)
    target = STEP_TARGET if device.type == "cuda" else None
    return {
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "heads": rows,
        "ggem_adds_to_avg_step_percent": {
            "of_shortest": fastest,
            "median": statistics.median(added),
            "target": target,
            "met": None if target is None else statistics.median(added) <= target,
        },
        "seconds": seconds,
        "step_seconds": step_seconds,
    }


def table(report: dict[str, Any]) -> str:
    """Return the results as text."""
    lines = []
    for row in report["kernels"]:
        shape = "×".join(map(str, row["shape"]))
        lines.append(f"{shape} {row['dtype']}, copy {row['copy_gb_per_s']:.1f} GB/s; times / copy's:   min  median")
        lines += [f"  {name:<46}{r['min']:>8.2f}{r['median']:>8.2f}" for name, r in row["ratios"].items()]
        for name, r in row["summary"].items():
            sign = "≥" if "bandwidth" in name else "≤"
            state = "" if r["target"] is None else f"   {sign} {r['target']}: {'met' if r['met'] else 'missed'}"
            lines.append(f"  {name:<46}{r['min']:>8.2f}{r['median']:>8.2f}{state}")
        lines.append(f"  kept by ggem, results of (B, C): {row['memory']['kept_in_statistics']:.2f}")
    if "heads" in report:
        found = report["heads"]
        lines.append(f"heads, batch {found['batch']}, {found['dtype']}: times / copy's   min  median   % of a step")
        for name, r in found["heads"].items():
            lines.append(f"  {name:<38}{r['min']:>8.1f}{r['median']:>8.1f}{r['share_of_step_percent']:>12.2f}")
        added = found["ggem_adds_to_avg_step_percent"]
        state = "" if added["target"] is None else f"   ≤ {added['target']} %: {'met' if added['met'] else 'missed'}"
        lines.append(
            f"  ggem adds to a step with avg: {added['of_shortest']:.2f} %, median {added['median']:.2f}{state}"
        )
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """Return the device as in the names of results."""
    if device.type == "cpu":
        return f"cpu-{len(os.sched_getaffinity(0))}core"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def main() -> None:
    """Measure, print a table, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=21, help="rounds of the poolings")
    parser.add_argument("--head_rounds", type=int, default=7, help="rounds of all heads and of the tower's step")
    parser.add_argument("--batch", type=int, help="batch of heads and tower (default: 8 on CPUs, 256 on GPUs)")
    parser.add_argument("--no_heads", action="store_true", help="measure the poolings only")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small batches, one round")
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/pooling_DEVICE.json)")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    timer = Timer(device)
    rounds, head_rounds = (1, 1) if args.quick else (args.rounds, args.head_rounds)
    batches = (8,) if args.quick else (64, 256)
    before = os.getloadavg()
    name = device_name(device)
    report: dict[str, Any] = {
        "schema": 1,
        "benchmark": "pooling",
        "device": name,
        "command": f"python benchmarks/pooling.py --rounds {rounds} --head_rounds {head_rounds}",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{key: version(key) for key in ("mmrep", "torch", "timm")}},
        "load_before": before,
        "kernels": [
            kernels(torch.randn(batch, PATCHES, WIDTH, device=device).to(dtype), timer, rounds)
            for batch in batches
            for dtype in (torch.float32, torch.bfloat16)
        ],
    }
    if not args.no_heads:
        batch = args.batch or (2 if args.quick else 8 if device.type == "cpu" else 256)
        report["heads"] = heads(device, batch, head_rounds, timer)
    report["load_after"] = os.getloadavg()
    output = args.output or RESULTS / f"pooling_{name}{'_quick' * args.quick}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{table(report)}\n\nwritten: {output}")


if __name__ == "__main__":
    main()
