"""Training on CPUs, compared with open_clip's own trainer: `python benchmarks/train_cpu.py`.

Both train the same tiny CLIP on the same shards in fp32. Three parts, each reported on its own:
A  equal work: equal context, augmentation, optimiser implementation, loader workers, threads, log interval;
B  each trainer as it comes: mmrep cuts texts of context 77 and uses fused AdamW, open_clip does neither;
C  wall time from the command to the end of the first training step.

Throughput is measured on both trainers in turns: both processes live, one is stopped while the other trains a slice
of steps, so that other load on the machine meets both alike. Every pair of neighbouring slices gives one ratio.
"""

import argparse
import io
import json
import os
import platform
import queue
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mmrep.config.caches import cache_root
from mmrep.data.paths import resolve_place

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PEER_PINS = ("open_clip_torch[training]==3.3.0", "webdataset==0.2.86")
SHARED_PACKAGES = ("torch", "torchvision", "timm")
"""The peer's environment has the versions of ours."""
TARGETS = {"A": 1.2, "B": 2.0, "C": 1.0}

QUIET = 0.25
"""Cores that other processes may take during a slice for it to count as undisturbed."""

MODEL = {"embed_dim": 128, "image": 32, "patch": 8, "width": 128, "depth": 4, "heads": 4, "text": (128, 4, 2)}
OPTIMISER = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.1, "warmup": 10}
MANY_STEPS = 100_000
"""Steps that the trainers are told to do; they are ended when everything is measured."""


@dataclass(frozen=True)
class Settings:
    """The settings of one part.

    Attributes:
        context: context length of both text towers.
        workers: loader processes of mmrep; None: its default.
        peer_workers: loader processes of open_clip.
        fused_peer: whether open_clip's AdamW is fused too.
        log_every: steps between two log lines of both.
        batch: pairs in a step.
    """

    context: int
    workers: int | None
    peer_workers: int
    fused_peer: bool
    log_every: int
    batch: int


@dataclass(frozen=True)
class Places:
    """Files and programs of a run."""

    work: Path
    shards: Path
    peer_python: Path


class Trainer:
    """A trainer in its own process group, watched through its log lines.

    Args:
        command: its arguments.
        log_line: matches the log line of a step; the first group is the count of steps, or of pairs.
        divisor: what turns that count into steps.
        threads: OpenMP threads.
    """

    def __init__(self, command: list[str], log_line: str, divisor: int, threads: int) -> None:
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment(threads), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        self.step = 0
        self._steps: queue.Queue[tuple[int, float] | None] = queue.Queue()
        self._tail: deque[str] = deque(maxlen=40)
        self._pattern, self._divisor = re.compile(log_line), divisor
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None, "opened as a pipe"
        for line in self.process.stdout:
            now = time.perf_counter()
            self._tail.append(line)
            found = self._pattern.search(line)
            if found:
                self._steps.put((int(found[1]) // self._divisor, now))
        self._steps.put(None)

    def wait(self, step: int, limit: float = 600) -> float:
        """Wait for the first log line after at least `step` steps, and return its time.

        Raises:
            RuntimeError: the trainer ended or was silent for `limit` seconds.
        """
        while self.step < step:
            try:
                seen = self._steps.get(timeout=limit)
            except queue.Empty:
                seen = None
            if seen is None:
                raise RuntimeError(f"{self.process.args}: no step {step}; its last lines:\n{''.join(self._tail)}")
            self.step, now = seen
        return now

    def pause(self) -> None:
        """Stop the whole process group."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def slice(self) -> tuple[int, float, float | None]:
        """Run a paused trainer to its next log line. Return the steps, the seconds, and the cores that others used."""
        before, begin = self.step, time.perf_counter()
        own, everyone = self.cpu_seconds(), busy_seconds()
        os.killpg(self.process.pid, signal.SIGCONT)
        end = self.wait(before + 1)
        self.pause()
        others = None
        if own is not None and everyone is not None:
            used = (busy_seconds() or 0) - everyone - (self.cpu_seconds() or 0) + own
            others = max(0.0, round(used / (end - begin), 2))
        return self.step - before, end - begin, others

    def cpu_seconds(self) -> float | None:
        """Return the processor time of the trainer without loader workers, or None if the kernel does not report it."""
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return None

    def close(self) -> None:
        """End the process group at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def environment(threads: int) -> dict[str, str]:
    """Return the environment of both trainers: CPU only, the same threads, no network."""
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def busy_seconds() -> float | None:
    """Return the processor time of all processes since the machine started; None if the kernel does not report it."""
    with suppress(OSError, ValueError):
        user, nice, system = Path("/proc/stat").read_text().split()[1:4]
        return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
    return None


# Data, peer, model


def derive_shards(folder: Path) -> Path:
    """Make the default scenes as png with one caption line per sample, since open_clip reads a txt as one caption."""
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for shard in sorted(Path(resolve_place("scenes:train")).glob("*.tar")):
            with tarfile.open(shard) as source, tarfile.open(folder / shard.name, "w") as target:
                for member in source:
                    data = source.extractfile(member).read()  # type: ignore[union-attr]  # shards hold plain files
                    if member.name.endswith(".txt"):
                        data = data.splitlines()[0]
                    elif not member.name.endswith(".png"):
                        continue
                    member.size = len(data)
                    target.addfile(member, io.BytesIO(data))
        (folder / "complete").touch()
    return folder


def read_captions(folder: Path, count: int) -> list[str]:
    """Return the first captions of the shards."""
    texts: list[str] = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as source:
            for member in source:
                if member.name.endswith(".txt"):
                    texts.append(source.extractfile(member).read().decode())  # type: ignore[union-attr]  # as above
                if len(texts) == count:
                    return texts
    return texts


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
        raise SystemExit("uv is not on PATH: it makes the environment of open_clip's trainer")
    print(f"making the peer's environment: {', '.join(pins)}")
    # Without --no-config, uv would hold the peer to this project's own pins.
    subprocess.run([uv, "venv", "--no-config", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
    subprocess.run([uv, "pip", "install", "--no-config", "--quiet", "--python", python, *pins], check=True)
    record.write_text(json.dumps(pins))
    return python


def our_config(settings: Settings, shards: Path) -> dict[str, Any]:
    """Return the config of mmrep. Fields that are left out have their defaults."""
    width, heads, layers = MODEL["text"]
    size = {"img_size": MODEL["image"], "patch_size": MODEL["patch"], "embed_dim": MODEL["width"]}
    return {
        "model": {
            "pool": "cls",
            "embed_dim": MODEL["embed_dim"],
            "image": {
                "trunk": "vit_base_patch16_clip_224",
                "args": {**size, "depth": MODEL["depth"], "num_heads": MODEL["heads"]},
            },
            "text": {"context_length": settings.context, "width": width, "heads": heads, "layers": layers},
        },
        "data": {"train": [{"shards": str(shards), "caption": "txt"}], "min_scale": 0.9, "workers": settings.workers},
        "optim": OPTIMISER,
        "training": {
            "steps": MANY_STEPS,
            "global_batch": settings.batch,
            "log_every": settings.log_every,
            "checkpoint_minutes": None,
        },
    }


def peer_model(context: int) -> dict[str, Any]:
    """Return the same model as a config of open_clip."""
    width, heads, layers = MODEL["text"]
    vision = {"image_size": MODEL["image"], "patch_size": MODEL["patch"], "width": MODEL["width"]}
    return {
        "embed_dim": MODEL["embed_dim"],
        "vision_cfg": {**vision, "layers": MODEL["depth"], "head_width": MODEL["width"] // MODEL["heads"]},
        "text_cfg": {"context_length": context, "vocab_size": 49408, "width": width, "heads": heads, "layers": layers},
    }


def write_inputs(settings: Settings, places: Places, name: str) -> tuple[Path, Path]:
    """Write our YAML file and the peer's model folder."""
    folder = places.work / name
    (folder / "model").mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(our_config(settings, places.shards)))
    (folder / "model" / "open_clip_config.json").write_text(json.dumps({"model_cfg": peer_model(settings.context)}))
    return config, folder / "model"


# Starting the trainers


def our_command(config: Path, output: Path, accelerate: bool = False) -> list[str]:
    """Return the command of mmrep, or of `accelerate launch`."""
    programs = Path(sys.executable).parent
    start = [str(programs / "mmrep"), "train"]
    if accelerate:
        plain = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        start = [str(programs / "accelerate"), "launch", "--cpu", *plain, "train.py"]
    return [*start, "--config", str(config), "--output_dir", str(output)]


def peer_command(settings: Settings, places: Places, model: Path, output: Path) -> list[str]:
    """Return the command of open_clip's trainer."""
    fused = [str(ROOT / "benchmarks" / "fused_open_clip.py")]
    trainer = fused if settings.fused_peer else ["-m", "open_clip_train.main"]
    names = sorted(path.stem for path in places.shards.glob("*.tar"))
    options = {
        "model": f"local-dir:{model}",
        "train-data": f"{places.shards}/{{{names[0]}..{names[-1]}}}.tar",
        "dataset-type": "webdataset",
        "train-num-samples": MANY_STEPS * settings.batch,
        "batch-size": settings.batch,
        "epochs": 1,
        "precision": "fp32",
        "device": "cpu",
        "lr": OPTIMISER["lr"],
        "beta1": OPTIMISER["beta1"],
        "beta2": OPTIMISER["beta2"],
        "eps": OPTIMISER["eps"],
        "wd": OPTIMISER["weight_decay"],
        "warmup": OPTIMISER["warmup"],
        "log-every-n-steps": settings.log_every,
        "logs": output.parent,
        "name": output.name,
        "workers": settings.peer_workers,
    }
    given = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    return [str(places.peer_python), *trainer, *given]


class Starter:
    """Starts either trainer on one part's settings, each time into a new folder."""

    def __init__(self, part: str, settings: Settings, places: Places, threads: int) -> None:
        self.settings, self.places, self.threads = settings, places, threads
        self.part, self.count = part, 0
        self.config, self.model = write_inputs(settings, places, part)
        self.commands: dict[str, str] = {}

    def __call__(self, who: str) -> Trainer:
        """Start `ours`, `accelerate` or `theirs`."""
        self.count += 1
        output = self.places.work / self.part / f"{who}-{self.count}"
        if who == "theirs":
            command = peer_command(self.settings, self.places, self.model, output)
            log_line, divisor = r"\[\s*(\d+)/\d+ \(", self.settings.batch
        else:
            command = our_command(self.config, output, who == "accelerate")
            log_line, divisor = rf"step (\d+)/{MANY_STEPS}\b", 1
        shown = shlex.join(command)
        for path, name in (
            (str(self.places.work), "WORK"),
            (str(self.places.shards), "SHARDS"),
            (str(self.places.peer_python), "PEER_PYTHON"),
            (f"{Path(sys.executable).parent}/", ""),
            (str(ROOT), "."),
        ):
            shown = shown.replace(path, name)
        self.commands.setdefault(who, shown)
        return Trainer(command, log_line, divisor, self.threads)

    @contextmanager
    def running(self, who: str) -> Iterator[Trainer]:
        """Start a trainer, and end it after the context."""
        trainer = self(who)
        try:
            yield trainer
        finally:
            trainer.close()


# Measuring


def measure_rates(start: Starter, pairs: int, launches: int) -> list[dict[str, Any]]:
    """Measure pairs/s of both trainers in slices, in alternating order."""
    rows: list[dict[str, Any]] = []
    batch = start.settings.batch
    for launch in range(launches):
        with start.running("ours") as ours:
            ours.wait(start.settings.log_every)  # The first steps are not measured.
            ours.pause()
            with start.running("theirs") as theirs:
                theirs.wait(start.settings.log_every)
                theirs.pause()
                for i in range(pairs // launches + (launch < pairs % launches)):
                    order = [("ours", ours), ("theirs", theirs)][:: 1 if i % 2 == 0 else -1]
                    row: dict[str, Any] = {"launch": launch, "first": order[0][0]}
                    for who, trainer in order:
                        steps, seconds, others = trainer.slice()
                        row[who] = steps * batch / seconds
                        row |= {f"{who}_steps": steps, f"{who}_seconds": seconds, f"{who}_other_load": others}
                    row["ratio"] = row["ours"] / row["theirs"]
                    rows.append(row)
                    load = f"others busy on {row['ours_other_load']}, {row['theirs_other_load']} cores"
                    rates = f"{row['ours']:7.0f} {row['theirs']:7.0f} pairs/s"
                    print(f"  {rates}   ratio {row['ratio']:.2f}   {load}", flush=True)
    return rows


def measure_start(start: Starter, pairs: int) -> list[dict[str, Any]]:
    """Measure seconds from the command to the end of the first step, of the three commands in turns."""
    rows: list[dict[str, Any]] = []
    for i in range(pairs):
        row: dict[str, Any] = {}
        for who in ("ours", "theirs", "accelerate")[:: 1 if i % 2 == 0 else -1]:
            with start.running(who) as trainer:
                row[who] = trainer.wait(1) - trainer.started
                row[f"{who}_cpu"] = trainer.cpu_seconds()
        row["ratio"] = row["ours"] / row["theirs"]
        rows.append(row)
        print(f"  ours {row['ours']:.1f} s, theirs {row['theirs']:.1f} s, accelerate launch {row['accelerate']:.1f} s"
              f"   ratio {row['ratio']:.2f}", flush=True)  # fmt: skip
    return rows


_DESCRIBE_OURS = """
import json, sys
from mmrep.cli.parsing import parse
from mmrep.config.tree import TrainConfig
from mmrep.model.create import build_model
config = parse(TrainConfig, "train", ["--config", sys.argv[1]])
model = build_model(config.model, 0, False)
texts, batch = json.load(open(sys.argv[2])), config.training.global_batch
parts = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]
widths = [model.tokenizer.batch(part)[0].shape[1] for part in parts]
print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "text_tokens": widths}))
"""
_DESCRIBE_THEIRS = """
import json, sys
from importlib.metadata import version
import open_clip
model = open_clip.create_model("local-dir:" + sys.argv[1])
texts, batch = json.load(open(sys.argv[2])), int(sys.argv[3])
parts = [texts[i : i + batch] for i in range(0, len(texts) - batch + 1, batch)]
widths = [open_clip.get_tokenizer("local-dir:" + sys.argv[1])(part).shape[1] for part in parts[:1]]
names = ("open_clip_torch", "webdataset", "torch", "torchvision", "timm", "transformers", "numpy", "pillow")
print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "text_tokens": widths,
                  "versions": {name: version(name) for name in names}}))
"""


def describe(start: Starter) -> dict[str, Any]:
    """Return the parameters of both models and the tokens of a text on each side: the proof of equal work."""
    texts = start.places.work / "texts.json"
    texts.write_text(json.dumps(read_captions(start.places.shards, 20 * start.settings.batch)))
    found = {}
    for who, command in {
        "ours": [sys.executable, "-c", _DESCRIBE_OURS, start.config, texts],
        "theirs": [start.places.peer_python, "-c", _DESCRIBE_THEIRS, start.model, texts, start.settings.batch],
    }.items():
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment(start.threads), check=True, capture_output=True
        )
        found[who] = json.loads(done.stdout.splitlines()[-1])
        found[who]["text_tokens"] = dict(Counter(found[who]["text_tokens"]))
    return found


def summary(rows: list[dict[str, Any]], part: str) -> dict[str, Any]:
    """Return smallest, median and largest ratio, the medians of both sides, and whether the target is met.

    All pairs count; `undisturbed` is the same over those where other processes took at most `QUIET` cores.
    """

    def spread(chosen: list[dict[str, Any]]) -> dict[str, float]:
        ratios = [row["ratio"] for row in chosen]
        return {"pairs": len(ratios), "min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}

    calm = [row for row in rows if max(row.get(f"{who}_other_load") or 0 for who in ("ours", "theirs")) <= QUIET]
    sides = [key for key in ("ours", "theirs", "accelerate") if key in rows[0]]
    ratio = spread(rows)
    middle = ratio["median"]
    return {
        "ratio": ratio,
        "undisturbed": spread(calm) if calm and part != "C" else None,
        "median": {key: statistics.median(row[key] for row in rows) for key in sides},
        "target": TARGETS[part],
        "met": middle <= TARGETS[part] if part == "C" else middle >= TARGETS[part],
    }


def table(parts: dict[str, dict[str, Any]]) -> str:
    """Return the results as text."""
    titles = {"A": "equal work, pairs/s", "B": "each as it comes, pairs/s", "C": "command to first step, s"}
    lines = [f"{'part':<29}{'ours':>8}{'theirs':>8}   {'ratio: min':>10}{'median':>8}{'max':>7}   target"]
    for name, part in parts.items():
        ratio, median = part["summary"]["ratio"], part["summary"]["median"]
        sign, digits = ("≤", 1) if name == "C" else ("≥", 0)
        verdict = f"{sign} {part['summary']['target']}: {'met' if part['summary']['met'] else 'missed'}"
        lines.append(
            f"{name}  {titles[name]:<26}{median['ours']:>8.{digits}f}{median['theirs']:>8.{digits}f}   "
            f"{ratio['min']:>10.2f}{ratio['median']:>8.2f}{ratio['max']:>7.2f}   {verdict}"
        )
        calm = part["summary"]["undisturbed"]
        if calm and calm["pairs"] < ratio["pairs"]:
            lines.append(
                f"   {calm['pairs']} of {ratio['pairs']} pairs undisturbed".ljust(48)
                + f"{calm['min']:>10.2f}{calm['median']:>8.2f}{calm['max']:>7.2f}"
            )
        if name == "C":
            lines.append(f"   {'of accelerate launch, s':<26}{median['accelerate']:>8.1f}")
    return "\n".join(lines)


def main() -> None:
    """Run the chosen parts, print a table, and write the results."""
    home = cache_root() / "benchmarks"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=8, help="pairs of slices in A and B")
    parser.add_argument("--starts", type=int, default=4, help="starts of each command in C")
    parser.add_argument("--steps", type=int, default=20, help="steps in a slice and between log lines")
    parser.add_argument("--launches", type=int, default=2, help="fresh processes that the pairs are spread over")
    parser.add_argument("--threads", type=int, help="threads of both (default: one per core)")
    parser.add_argument("--batch", type=int, default=128, help="pairs in a step")
    parser.add_argument("--only", choices=sorted(TARGETS), help="measure one part only")
    parser.add_argument("--quick", action="store_true", help="a smoke run: two short pairs, one start")
    parser.add_argument("--peer_workers", type=int, default=0, help="open_clip's loader workers in B")
    parser.add_argument("--peer_env", type=Path, default=home / "peer_env", help="environment of open_clip's trainer")
    parser.add_argument("--output", type=Path, help="results file (default: benchmarks/results/train_cpu_DEVICE.json)")
    args = parser.parse_args()
    # Ended by a signal, the script still ends the trainers, which may be stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cores = len(os.sched_getaffinity(0))
    threads = args.threads or cores
    pairs, launches, steps, starts = args.pairs, args.launches, args.steps, args.starts
    if args.quick:
        pairs, launches, steps, starts = 2, 1, 3, 1
    equal = Settings(context=16, workers=0, peer_workers=0, fused_peer=True, log_every=steps, batch=args.batch)
    plain = {"context": 77, "fused_peer": False}
    chosen = {
        "A": equal,
        "B": replace(equal, **plain, workers=None, peer_workers=args.peer_workers),
        "C": replace(equal, fused_peer=False, log_every=1),
    }
    chosen = {args.only: chosen[args.only]} if args.only else chosen
    report: dict[str, Any] = {
        "schema": 1,
        "benchmark": "train_cpu",
        "device": f"cpu-{cores}core",
        "command": command_line(parser, args),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "threads": threads,
        "optimiser": OPTIMISER,
        "load_before": os.getloadavg(),
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as work:
        places = Places(Path(work), derive_shards(home / "train_cpu_shards"), peer_environment(args.peer_env))
        for part, settings in chosen.items():
            print(f"{part}: {settings}", flush=True)
            start = Starter(part, settings, places, threads)
            about = describe(start)
            report["versions"] = {"ours": our_versions(), "theirs": about["theirs"].pop("versions")}
            rows = measure_start(start, starts) if part == "C" else measure_rates(start, pairs, launches)
            report["parts"][part] = {
                "settings": asdict(settings),
                "commands": start.commands,
                "models": about,
                "pairs": rows,
                "summary": summary(rows, part),
            }
    report["load_after"] = os.getloadavg()
    suffix = "" if threads == cores else f"_{threads}thread"
    suffix += f"_{args.only}" * bool(args.only) + "_quick" * args.quick
    output = args.output or RESULTS / f"train_cpu_{report['device']}{suffix}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(report['parts'])}\n\nwritten: {output}")


def command_line(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """Return the command with the options that matter for the numbers, without paths."""
    parts = ["python", "benchmarks/train_cpu.py"]
    for name, value in vars(args).items():
        if value != parser.get_default(name) and name not in ("output", "peer_env"):
            parts += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(parts)


def our_versions() -> dict[str, str]:
    """Return the versions on our side."""
    names = ("mmrep", "torch", "torchvision", "timm", "open_clip_torch", "accelerate", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def commit() -> str:
    """Return git's name of this state of the code."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def processor() -> str:
    """Return the processor's name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", path.read_text()) if path.exists() else None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
