"""What a study would cost and could show, before it is run (`mmrep compare --dry_run`)."""

import time
from typing import NamedTuple

import torch

from mmrep.batch import Batch
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.loss import total_loss
from mmrep.markup import align
from mmrep.model.create import build_model
from mmrep.model.dual_encoder import DualEncoder
from mmrep.study.plan import PlannedRun, plan_runs, tuning_runs
from mmrep.study.planning import detectable, seeds_needed
from mmrep.study.statistics import MIN_SEEDS
from mmrep.training.costs import count_parameters, image_gmacs

MOST_PAIRS = 64
"""Pairs of the trial step; its time is scaled to the global batch."""


class Estimate(NamedTuple):
    """The cost of one run.

    Attributes:
        params: parameters of the model.
        gmacs: multiply-adds of the image tower for one image, in 10^9.
        seconds: time of all training steps on this machine, without loading data and evaluation.
        bytes: checkpoints and final weights.
    """

    params: int
    gmacs: float
    seconds: float
    bytes: float


def dry_run(config: CompareConfig, device: torch.device) -> str:
    """Return a table of the arms with their costs, the totals, and what the plan can detect.

    Args:
        config: the study.
        device: the device that the trial steps run on.
    """
    arms, seeds, tune = config.study.arms(), config.study.seeds, config.study.tune
    per_arm = len(seeds) + (len(tune.grid()) * len(tune.seeds) if tune.values else 0)
    rows, total, disk = [["pool", "runs", "parameters", "GMACs/image", "train time a run"]], 0.0, 0.0
    for run in _one_run_an_arm(config):
        found = estimate(run.config, device)
        total, disk = total + per_arm * found.seconds, disk + per_arm * found.bytes
        rows.append([run.pool, str(per_arm), f"{found.params / 1e6:.2f} M", f"{found.gmacs:.3g}", clock(found.seconds)])
    workers = "" if config.workers == 1 else f"; {config.workers} workers share the runs"
    lines = [
        align(rows),
        "",
        f"{len(arms) * per_arm} runs, {clock(total)} of training on {_name(device)}, {disk / 1e9:.2g} GB{workers}. "
        f"Estimated from one step of {min(MOST_PAIRS, config.training.global_batch)} pairs; loading, evaluation and "
        "diagnostics come on top.",
        power_line(config),
    ]
    return "\n".join(lines)


def _one_run_an_arm(config: CompareConfig) -> list[PlannedRun]:
    """Return one run for each arm; which learning rate it has does not matter to its cost."""
    found = {run.pool: run for run in [*tuning_runs(config), *plan_runs(config)]}
    return [found[arm.label] for arm in config.study.arms()]


def estimate(config: TrainConfig, device: torch.device) -> Estimate:
    """Return the cost of one run, from the model and the time of a trial step."""
    model = build_model(config.model, config.seed_of("trunk"), config.loss.kind == "sigmoid").to(device)
    model.precision = config.training.resolved()
    model.set_grad_checkpointing(config.training.grad_checkpointing)
    pairs = min(MOST_PAIRS, config.training.global_batch)
    step = min(_step_seconds(model, config, pairs) for _ in range(2))
    params = count_parameters(model)
    copies = 1 + 3 * config.training.keep_checkpoints  # weights and AdamW's two moments
    seconds = step * config.training.steps * config.training.global_batch / pairs
    return Estimate(params, image_gmacs(model), seconds, 4.0 * params * copies)


def _step_seconds(model: DualEncoder, config: TrainConfig, pairs: int) -> float:
    tokens, lengths = model.tokenizer.batch(["a photo of a cat"] * pairs)
    ids = torch.arange(pairs)
    images = torch.randint(0, 256, (pairs, 3, *model.image.size), dtype=torch.uint8)
    batch = Batch(images, tokens, lengths, ids, ids, torch.zeros_like(ids)).to(model.device)
    begin = time.perf_counter()
    output = model(batch)
    loss = total_loss(
        output.image,
        output.text,
        output.logit_scale,
        output.auxiliary,
        config.loss,
        output.logit_bias,
        batch.groups,
        "mask",
    )
    loss.backward()
    model.zero_grad()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - begin


def power_line(config: CompareConfig) -> str:
    """Return a sentence on the smallest difference that the plan detects with 80% power, and the seeds for less."""
    seeds, primary = len(config.study.seeds), config.study.primary
    contrasts = len(config.study.contrasts())
    if not contrasts:
        return "One head: nothing to compare."
    if seeds < MIN_SEEDS:
        return f"{seeds} seed{'s' if seeds > 1 else ''}: no verdict; give study.seeds at least {MIN_SEEDS}, better 5."
    found = detectable(primary.sd, seeds, contrasts, config.study.confidence)
    target = primary.margin or primary.detect
    needed = seeds_needed(target, primary.sd, contrasts, config.study.confidence)
    more = f"; for {target:g}: {needed} seeds" if needed else ""
    return (
        f"With {seeds} seeds and {contrasts} contrast{'s' if contrasts > 1 else ''} it detects a difference of "
        f"{found:.2g} points with 80% power{more}. This assumes that a paired difference has a standard deviation of "
        f"{primary.sd:g} points over seeds (study.primary.sd)."
    )


def clock(seconds: float) -> str:
    """Return a duration with a unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"a CPU ({torch.get_num_threads()} threads)"
