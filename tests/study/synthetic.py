"""Synthetic results of studies, for tests of the report. No model is trained; figures come from a seeded source."""

import base64
import io
import math
import statistics
from random import Random
from typing import Any

from PIL import Image, ImageDraw
from scipy.special import stdtr, stdtrit

METRICS = {
    "tiny_imagenet/acc1": (0.005, 5000),
    "tiny_imagenet/acc5": (0.025, 5000),
    "flickr8k/image_retrieval_recall@1": (0.005, 1000),
    "flickr8k/text_retrieval_recall@1": (0.005, 1000),
}
HEADS = ["cls", "avg", "max", "gem", "ggem", "relu_avg", "lse", "map", "simpool", "avg_mlp"]
GAINS = dict(zip(HEADS, [-0.021, 0, -0.034, 0.0086, 0.0117, 0.0006, 0.003, 0.0191, 0.012, 0.0004], strict=True))


def picture(seed: int, size: int = 96) -> str:
    """A data-URI of a small JPEG."""
    random = Random(seed)
    image = Image.new("RGB", (size, size), tuple(random.randrange(60, 220) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, r = random.randrange(size), random.randrange(size), random.randrange(6, size // 3)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(random.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def difference(
    metric: str, a: str, b: str, values: dict[str, list[float]], seeds: list[int], margin: float | None, judged: int
) -> dict[str, Any]:
    """An entry as statistics.Difference has it. `judged` is the size of the family, 0 for an exploratory metric."""
    gaps = [x - y for x, y in zip(values[a], values[b], strict=True)]
    n, mean = len(gaps), statistics.fmean(gaps)
    entry: dict[str, Any] = {
        "metric": metric, "a": a, "b": b, "mean": mean, "low": None, "high": None, "p": None, "p_adjusted": None,
        "p_holm": None, "method": "difference of means", "seeds": n, "verdict": None, "exploratory": not judged,
        "margin": margin if judged else None, "target": margin or 0.005, "seeds_needed": None, "detectable": None,
        "sd": None, "correlation": None, "pairing": None, "differences": gaps, "seed_list": seeds,
        "new_images": None, "these_checkpoints": None,
    }  # fmt: skip
    if n < 3:
        return entry
    sd = max(statistics.stdev(gaps), 1e-4)
    se = sd / math.sqrt(n)
    reach = float(stdtrit(n - 1, 0.975)) * se * (1 + 0.12 * max(judged - 1, 0))
    p = 2 * float(stdtr(n - 1, -abs(mean) / se))
    entry |= {
        "low": mean - reach, "high": mean + reach, "p": p, "method": "paired t over seeds", "sd": sd,
        "correlation": 0.62, "pairing": 0.41, "detectable": 2.9 * se,
        "seeds_needed": max(3, math.ceil((2.9 * sd / (margin or 0.005)) ** 2)),
    }  # fmt: skip
    if judged:
        apart = abs(mean) > reach
        within = margin is not None and abs(mean) + reach <= margin
        decided = ("better" if mean > 0 else "worse") if apart else "equivalent" if within else "cannot tell"
        entry |= {"verdict": decided, "p_adjusted": min(1.0, p * judged), "p_holm": min(1.0, p * max(1, judged - 1))}
        entry["new_images"] = {
            "low": mean - 1.7 * reach, "high": mean + 1.7 * reach, "p": min(1.0, 2.4 * p),
            "df": n + 3.4, "se": 1.7 * se,
            "parts": {"seeds": 0.31, "images": 0.22, "both": 0.47},
        }  # fmt: skip
        entry["these_checkpoints"] = {"low": mean - 0.45 * reach, "high": mean + 0.45 * reach}
    return entry


def curve(random: Random, head: str, shift: float, groups: int) -> list[dict[str, Any]]:
    """The records of a run."""
    records: list[dict[str, Any]] = []
    for step in range(20, 1001, 20):
        loss = 1.1 + 3.4 * math.exp(-step / 260) - 4 * shift + random.gauss(0, 0.03)
        record: dict[str, Any] = {"step": step, "loss": loss, "lr": 1e-3, "logit_scale": 14.3 + step / 100}
        if head in ("gem", "ggem"):
            count = groups if head == "ggem" else 1
            record["exponents"] = [3 + (0.9 * g - 1.4) * step / 1000 + random.gauss(0, 0.01) for g in range(count)]
        if step % 200 == 0:
            record["evaluation"] = {
                "validation/acc1": 0.3 * (1 - math.exp(-step / 400)) + shift + random.gauss(0, 0.004)
            }
        records.append(record)
    return records


def diagnosed(random: Random, shift: float, blocks: int = 6) -> dict[str, Any]:
    """The diagnostics of a run."""
    points = ["embedding", *(f"block {i} {half}" for i in range(blocks) for half in ("attention", "mlp"))]
    spatial = [0.2 + 0.05 * i + 2 * shift * i + random.gauss(0, 0.01) for i in range(len(points))]
    channel = [0.9 + 0.01 * i + random.gauss(0, 0.01) for i in range(len(points))]
    return {
        "schema": 1, "key": "0", "images": 256, "accuracy_images": 1000, "left_out": {},
        "variance": {
            "points": points, "spatial": spatial, "channel": channel, "spatial_share": spatial, "channel_share": channel
        },
        "dead_units": {
            "off_share": [0.5 + 0.04 * i + random.gauss(0, 0.01) for i in range(blocks)], "dead": list(range(blocks)),
            "units": [384] * blocks, "tokens": 50000, "overall_off_share": 0.61, "overall_dead_share": 0.0065,
        },
        "dependence": {
            "samples": 256, "groups": 6, "between": 0.11 + shift, "within": 0.12, "floor": 0.05, "hsic_rbf": 0.21,
            "hsic_linear": 0.2,
        },
        "patch_weights": {"sum": 1.0, "effective_share": 0.7 - 8 * abs(shift)},
        "removal": {
            "images": 1000, "whole": 0.31 + shift, "salient": 0.08 + shift / 2, "control": 0.27 + shift,
            "drop_salient": 0.2, "drop_control": 0.04, "removed": 0.3, "overlap": 0.12,
        },
        "resolution": [
            {"size": [s, s], "patches": s, "ms": 5e-5 * s**2 + 0.02, "accuracy": 0.3 + shift - abs(s - 64) / 300}
            for s in (48, 64, 80, 96)
        ],
        "exponents": {"steps": [], "min": [], "median": [], "max": [], "final": []},
    }  # fmt: skip


def pictures() -> list[dict[str, Any]]:
    """Pictures of both kinds."""
    names = ["goldfish", "school bus", "monarch butterfly", "espresso"]
    wrong = ["orange", "trolleybus", "bee", "teapot"]
    return [
        {
            "title": "Right with ggem, wrong with avg, in all seeds", "a": "ggem", "b": "avg", "kind": "classification",
            "items": [
                {"caption": right, "image": picture(i), "maps": {"ggem": picture(50 + i), "avg": picture(80 + i)},
                 "answers": {"ggem": right, "avg": other}}
                for i, (right, other) in enumerate(zip(names, wrong, strict=True))
            ],
        },
        {
            "title": "Found by ggem, missed by avg, in all seeds", "a": "ggem", "b": "avg", "kind": "retrieval",
            "items": [
                {"query": "two dogs run over wet sand at the edge of the sea", "right": {"ggem": 0, "avg": 3},
                 "tops": {"ggem": [picture(i, 72) for i in range(5)], "avg": [picture(9 + i, 72) for i in range(5)]}},
                {"query": "a child in a yellow coat jumps into a puddle", "right": {"ggem": 0, "avg": None},
                 "tops": {
                    "ggem": [picture(20 + i, 72) for i in range(5)], "avg": [picture(30 + i, 72) for i in range(4)]}},
            ],
        },
    ]  # fmt: skip


def study_results(
    heads: tuple[str, ...] = ("cls", "avg", "gem", "ggem"),
    seeds: int = 5,
    margin: float | None = 0.005,
    contrasts: list[tuple[str, str]] | None = None,
    axes: dict[str, list[Any]] | None = None,
    primary: str | None = "tiny_imagenet/acc1",
    inside: bool = True,
    **fields: Any,
) -> Any:
    """The content of results.json of a study with these heads; further fields replace what is made here."""
    random, numbers = Random(7), list(range(seeds))
    arms = [(head, {}) for head in heads]
    for name, points in (axes or {}).items():
        arms = [(head, {**at, name: point}) for head, at in arms for point in points]
    shown = {
        i: ",".join([head, *(f"{k.rpartition('.')[2]}={v}" for k, v in at.items())])
        for i, (head, at) in enumerate(arms)
    }
    noise = {(metric, seed): random.gauss(0, 0.006) for metric in METRICS for seed in numbers}
    runs, curves, found = [], {}, {}
    for seed in numbers:
        for i, (head, at) in enumerate(arms):
            shift = GAINS.get(head, 0.0) + (0.004 * (i % 3) if at else 0)
            metrics = {}
            for k, (metric, (_, items)) in enumerate(METRICS.items()):
                value = 0.284 + 0.11 * k + shift * (1 + k) + noise[metric, seed] + random.gauss(0, 0.004)
                metrics[metric] = round(value * items) / items
            speed = 900 - 40 * (HEADS.index(head) if head in HEADS else 0) + random.gauss(0, 6)
            runs.append({
                "pool": shown[i], "seed": seed, "head": head, "at": at, "metrics": metrics,
                "chance": {m: chance for m, (chance, _) in METRICS.items()},
                "items": {m: items for m, (_, items) in METRICS.items()}, "evaluations": 1,
                "cost": {
                    "params": 5_400_000 + 90_000 * (head in ("map", "avg_mlp")) + 4000 * i,
                    "gmacs": 0.184 + 0.011 * (head == "map"), "pairs_per_s": speed / 3, "images_per_s": speed,
                    "peak_mb": 1210 + 30 * (i % 5) + random.gauss(0, 4),
                },
            })  # fmt: skip
            curves[f"{shown[i]}-{seed}"] = curve(random, head, shift, 4)
            found[f"{shown[i]}-{seed}"] = diagnosed(random, shift)
    baseline = "avg" if "avg" in heads else heads[0]
    own = {str(at): shown[i] for i, (head, at) in enumerate(arms) if head == baseline}
    against = [(shown[i], own[str(at)]) for i, (head, at) in enumerate(arms) if head != baseline]
    pairs = contrasts if contrasts is not None else against
    differences = []
    for metric in METRICS:
        values = {pool: [r["metrics"][metric] for r in runs if r["pool"] == pool] for pool in shown.values()}
        listed = dict.fromkeys([*pairs, *against])
        for a, b in listed:
            judged = len(pairs) if metric == primary and (a, b) in pairs else 0
            differences.append(difference(metric, a, b, values, numbers, margin, judged))
    results: dict[str, Any] = {
        "schema": 3, "name": "poolings", "kind": "compare", "command": "mmrep compare --config configs/poolings.yaml",
        "baseline": baseline, "primary": primary, "contrasts": [{"a": a, "b": b, "margin": margin} for a, b in pairs],
        "planned_seeds": numbers, "interim": False, "history": [], "paired": True, "unpaired_because": None,
        "runs": runs,
        "failed": [], "missing": 0, "differences": differences, "controls": [], "tuning": None, "unequal": [],
        "confidence": 0.95, "batches": {str(seed): f"{seed:016x}" for seed in numbers}, "patch_tokens": 64,
        "preserved": None, "mmrep": "0.9.0", "curves": curves,
    }  # fmt: skip
    if inside:
        results["diagnostics"] = {"dataset": "tiny_imagenet", "metric": "acc1", "runs": found}
    return {**results, **fields}


def full_results(seeds: int = 20, heads: tuple[str, ...] = tuple(HEADS), **fields: Any) -> Any:
    """Results with everything that a report can show."""
    grid = [{"optim.lr": lr} for lr in (0.0003, 0.001, 0.003)]
    best = {head: grid[2 if head == "max" else 1] for head in heads}
    tuning = {
        "fields": ["optim.lr"], "metric": "validation/acc1", "seeds": [100, 101], "edge": ["max"],
        "chosen": best,
        "runs": [
            {"pool": head, "at": at, "seed": seed, "value": 0.27 + GAINS[head] - 0.01 * (at != best[head])}
            for head in heads for at in grid for seed in (100, 101)
        ],
    }  # fmt: skip
    made = study_results(
        heads,
        seeds,
        contrasts=[("ggem", "avg"), ("ggem", "gem"), ("map", "avg"), ("gem", "relu_avg")],
        tuning=tuning,
        pictures=pictures(),
        controls=[{"a": "relu_avg", "b": "avg", "text": "the same head again, with another seed of the head"}],
        unequal=["map has 90,000 parameters more than avg.", "avg_mlp has 90,000 parameters more than avg."],
        history=[{"time": "2026-11-30 14:02", "text": "seeds 10 to 19 were added after 40 runs were finished"}],
    )
    return {**made, **fields}
