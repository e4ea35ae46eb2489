"""Screening: all heads of a study trained side by side on one frozen trunk, whose tokens are computed once a batch."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from mmrep import distributed
from mmrep.config.checks import require
from mmrep.config.pooling import PoolConfig
from mmrep.config.tree import ScreenConfig, TrainConfig
from mmrep.data.loader import Loaded, batches
from mmrep.data.sources import Sources
from mmrep.diagnostics.resolution import latency
from mmrep.evaluation.sets import EvalSet, open_set, validation_sets
from mmrep.evaluation.suite import evaluate, results_table, write_results
from mmrep.files import whole_folder, write_json, write_text
from mmrep.loss import total_loss
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import load, save_model
from mmrep.model.shared import apart, with_heads
from mmrep.study.plan import PlannedRun, plan_runs
from mmrep.study.queue import record_failure
from mmrep.training.build import describe_run, parameter_digests, resolve_duplicates, with_precision
from mmrep.training.checkpoint import Diverged
from mmrep.training.costs import count_parameters, image_gmacs, peak_memory_mb, reset_peak_memory
from mmrep.training.data import build_steps, index_progress, loader_workers
from mmrep.training.optim import build_optimizer, learning_rate, set_learning_rate
from mmrep.training.output import FINAL, METRICS, RESULTS, SUMMARY
from mmrep.training.trainer import exponent_range, flatten, train

LOG = logging.getLogger("mmrep")
TRUNK = "trunk"


class Head(NamedTuple):
    """One head in training.

    Attributes:
        run: its run.
        model: the shared towers with this head.
        optimizer: AdamW over what is the head's own.
        records: lines of its metrics.jsonl.
    """

    run: PlannedRun
    model: DualEncoder
    optimizer: torch.optim.Optimizer
    records: list[dict[str, Any]]


def screen(config: ScreenConfig, command: str) -> DualEncoder:
    """Train every head with every seed on one frozen trunk, and evaluate it. Seeds that are finished are left out.

    The runs have the folders and files of a study's, so that it is collected and reported as one. Only the first
    seed's models are kept.

    Args:
        config: the heads, the seeds and the recipe.
        command: command to print when a signal ends the training of the trunk.

    Returns:
        The model whose towers are frozen.

    Raises:
        ConfigError: several processes, or a head that does not fit the trunk.
        Diverged: all heads of a seed have diverged.
    """
    device = distributed.start()
    require(distributed.world_size() == 1, "screen: all heads train in one process; leave accelerate launch out")
    config = with_precision(config, device)
    base = frozen_model(config, command).to(device)
    base.precision = config.training.resolved()
    data = Sources(config.data, index_progress())
    sets = (
        validation_sets(data, config.data.validation, config.data.max_bad_fraction > 0),
        [open_set(each) for each in config.evaluation.sets],
    )
    runs = [_on_trunk(run, base) for run in plan_runs(config)]
    for seed in config.study.seeds:
        own = [run for run in runs if run.seed == seed and not (run.folder / SUMMARY).exists()]
        if own:
            _screen_seed(base, own, config, data, sets)
    return base


def _screen_seed(
    base: DualEncoder,
    runs: list[PlannedRun],
    config: ScreenConfig,
    data: Sources,
    sets: tuple[list[EvalSet], list[EvalSet]],
) -> None:
    """Train and evaluate the heads of one seed, and write their run folders, each summary last."""
    heads = _heads(base, runs)
    cost = {head.run.pool: _cost(head.model, config) for head in heads}
    reset_peak_memory(base.device)
    begin, recipe = time.perf_counter(), runs[0].config
    steps = build_steps(recipe, base, data, Accelerator(mixed_precision="no"))
    loaded = batches(steps, 0, loader_workers(recipe), recipe.data.prefetch, base.device.type == "cuda")
    number = config.study.seeds.index(runs[0].seed)
    checksum, heads = _train(heads, loaded, recipe, data, f"[seed {number + 1}/{len(config.study.seeds)}]")
    pairs = recipe.training.steps * recipe.training.global_batch
    rate = pairs / (time.perf_counter() - begin)
    shared = {"pairs_per_s": round(rate, 2), "peak_mb": round(peak_memory_mb(base.device), 1)}
    _evaluate(heads, *sets, config)
    for head in heads:
        if number == 0:
            with whole_folder(head.run.folder / FINAL, SafetensorError) as aside:
                save_model(head.model, aside)
        about = {"steps": recipe.training.steps, "batches": f"{checksum % 2**64:016x}", "patches": base.image.patches}
        write_json(head.run.folder / SUMMARY, {**about, "cost": cost[head.run.pool] | shared})


def frozen_model(config: ScreenConfig, command: str) -> DualEncoder:
    """Return the model whose towers are frozen: the one asked for, or one that the baseline's head trains now."""
    if config.trunk is not None:
        LOG.info("the towers are those of %s, frozen; the config's own model is not used", config.trunk)
        return load(config.trunk)
    recipe = config.recipe()
    pool = next(pool for pool, _ in config.study.heads() if pool.label == config.study.reference)
    run = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, pool={"name": pool.name, "args": pool.args}),
        evaluation=dataclasses.replace(recipe.evaluation, sets=[]),
        seed=config.study.seeds[0],
        output_dir=str(Path(config.output_dir) / TRUNK),
        resume="auto",
    )
    return load(train(run, command, label=f"trunk with {pool.label}"))


def _on_trunk(run: PlannedRun, base: DualEncoder) -> PlannedRun:
    """Return a run with the model that it trains: the frozen one with the run's head."""
    model = dataclasses.replace(
        base.config, pool=run.config.model.pool, pool_init="fresh", pool_base=None, weights=None
    )
    return run._replace(config=dataclasses.replace(run.config, model=model))


def _heads(base: DualEncoder, runs: Sequence[PlannedRun]) -> list[Head]:
    """Return the heads of one seed, and write their configs and the digests of their initial values."""

    def build(pool: PoolConfig, seed: int) -> DualEncoder:
        image = dataclasses.replace(base.config.image, pretrained=False)
        own = dataclasses.replace(
            base.config, image=image, pool={"name": pool.name, "args": pool.args}, pool_init="fresh", pool_base=None
        )
        return DualEncoder(own, seed, sigmoid=base.logit_bias is not None, head_seed=seed)

    pools = [run.config.model.pooling for run in runs]
    models = with_heads(base, pools, [run.config.seed_of("head") for run in runs], build)
    heads = []
    for run, model in zip(runs, models, strict=True):
        run.folder.mkdir(parents=True, exist_ok=True)
        describe_run(run.config, run.folder, parameter_digests(model))
        optimizer = build_optimizer(model, model.no_weight_decay(), run.config.optim, model.lr_scales())
        heads.append(Head(run, model.train(), optimizer, []))
    return heads


def _train(
    heads: list[Head], loaded: Iterator[Loaded], config: TrainConfig, data: Sources, label: str
) -> tuple[int, list[Head]]:
    """Train the heads on the same batches. Return the checksum of the batches, and the heads that have not diverged."""
    total, checksum = config.training.steps, 0
    duplicates = resolve_duplicates(config.loss.duplicates, data.captions)
    for step, each in enumerate(loaded):
        checksum += int(each.checksum)
        batch = each.batch.to(heads[0].model.device)
        done = step + 1
        logged = done % config.training.log_every == 0 or done == total
        for head in heads:
            output = head.model(batch)
            loss = total_loss(
                output.image, output.text, output.logit_scale, output.auxiliary, config.loss, output.logit_bias,
                batch.groups, duplicates,
            )  # fmt: skip
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(head.model.parameters(), config.optim.clip_norm or float("inf"))
            set_learning_rate(head.optimizer, learning_rate(step, total, config.optim))
            head.optimizer.step()
            head.optimizer.zero_grad()
            head.model.clamp_logit_scale(config.loss.max_logit_scale)
            if logged:
                line = {"step": done, "loss": float(loss.detach()), "lr": learning_rate(step, total, config.optim)}
                line |= {"logit_scale": float(head.model.logit_scale.detach().exp()), "gradient_norm": float(norm)}
                head.records.append(line | exponent_range(head.model.image.pool))
        if logged:
            heads = _sound(heads, done)
            LOG.info("%s step %d/%d of %d heads", label, done, total, len(heads))
    return checksum, heads


def _sound(heads: list[Head], step: int) -> list[Head]:
    """Return the heads whose loss is finite, and record the failure of the others."""
    broken = [head for head in heads if not math.isfinite(head.records[-1]["loss"])]
    for head in broken:
        record_failure(head.run, Diverged(f"the loss is {head.records[-1]['loss']} at step {step}"))
    if len(broken) == len(heads):
        raise Diverged(f"all heads have diverged by step {step}: lower optim.lr")
    return [head for head in heads if head not in broken]


def _evaluate(heads: Sequence[Head], validation: list[EvalSet], tests: list[EvalSet], config: ScreenConfig) -> None:
    """Evaluate all heads in one pass over each set, and write metrics.jsonl and results.json of each."""
    models = {head.run.folder.name: head.model for head in heads}
    options = dataclasses.replace(config.evaluation, cache=False)
    held_out, results = evaluate(models, validation, options), evaluate(models, tests, options)
    for head in heads:
        name = head.run.folder.name
        if own := [result for result in held_out if result.model == name]:
            head.records.append({"step": config.steps(), "evaluation": flatten(own)})
        lines = "".join(json.dumps(line) + "\n" for line in head.records)
        write_text(head.run.folder / METRICS, lines)
        if results:
            write_results(
                [each for each in results if each.model == name], head.run.folder / RESULTS, {"evaluations": 1}
            )
    if results:
        LOG.info("%s", results_table(results, most=5))


def _cost(model: DualEncoder, config: ScreenConfig) -> dict[str, float]:
    """Return what the whole model costs with this head, towers included."""
    with apart(model):
        return {
            "params": count_parameters(model),
            "gmacs": round(image_gmacs(model), 6),
            "images_per_s": round(1 / latency(model, config.evaluation.batch_size), 2),
        }
