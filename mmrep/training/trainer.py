"""A training run: build, loop, finish."""

import dataclasses
import hashlib
import json
import logging
import math
import platform
import statistics
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from mmrep import __version__, distributed
from mmrep.config.tree import TrainConfig
from mmrep.diagnostics.resolution import latency
from mmrep.evaluation.suite import Result, evaluate, results_table, write_results
from mmrep.files import DamagedFile, locked, read_json_lines, whole_folder, write_json
from mmrep.model.load import WEIGHTS, save_model
from mmrep.model.seeding import derive_seed
from mmrep.pooling.gem import exponents_of
from mmrep.training.build import Run, build_run, with_precision
from mmrep.training.costs import count_parameters, image_gmacs, peak_memory_mb, reset_peak_memory
from mmrep.training.optim import learning_rate, set_learning_rate
from mmrep.training.output import FINAL, METRICS, RESULTS, SUMMARY, read_results
from mmrep.training.resume import is_finished, plain
from mmrep.training.signals import Stopped, StopSignal

LOG = logging.getLogger("mmrep")
MOST_EXPONENTS = 64


def train(config: TrainConfig, resume_command: str, label: str = "train") -> Path:
    """Train a model, evaluate it once on the test sets, and write it to `final/`.

    Args:
        config: the whole config.
        resume_command: command to print when a signal ends the run.
        label: text before the progress bar.

    Returns:
        The folder of the run.

    Raises:
        ConfigError, DataError: see `build_run`.
        Stopped: a signal ended the run. There is a checkpoint if a step was done.
        Diverged: the loss or the model is not finite.
    """
    folder = Path(config.output_dir)
    device = distributed.start()
    config = with_precision(config, device)
    distributed.advise(f"continue with: {resume_command}")
    first = distributed.rank() == 0
    if _finished(config, device):
        return folder
    with StopSignal() as stop, locked(folder) if first else nullcontext():
        if _finished(config, device):  # by another process, before this one got the lock
            return folder
        at_step: int | None = None
        try:
            run = build_run(config, label)
            reset_peak_memory(run.device)
            try:
                at_step = run.first_step
                fit(run, stop, resume_command)
                at_step = config.training.steps
                finish(run, stop)
            except Exception as error:
                if at_step == config.training.steps and not isinstance(error, Stopped) and first:
                    LOG.warning("the trained model is kept; this goes on with its evaluation: %s", resume_command)
                raise
            finally:
                run.tracker.close()
        except KeyboardInterrupt as interrupt:
            if stop.twice or not stop.name:
                raise
            when = "before the first step" if at_step is None else "after the last step, the trained model is kept"
            raise Stopped(f"stopped by {stop.name} {when}; continue with:\n  {resume_command}") from interrupt
    return folder


def _finished(config: TrainConfig, device: torch.device) -> bool:
    """Return whether a run that is to be continued is finished already. All processes get the first one's answer."""
    ask = config.resume == "auto" and distributed.rank() == 0
    found = config.resume == "auto" and distributed.any_process(ask and is_finished(config), device)
    if found:
        LOG.info("%s is finished already: see %s", config.output_dir, Path(config.output_dir) / SUMMARY)
    return found


def fit(run: Run, stop: StopSignal, resume_command: str) -> None:
    """Run the training loop: fetch, forward, loss, step, log, evaluate, save."""
    config = run.config.training
    last_save = time.monotonic()
    run.wrapped.train()
    stop.patient = True
    for step, loaded in enumerate(run.batches(), start=run.first_step):
        # Dropout is drawn from (seed, step, rank), so that a resumed run draws the same.
        torch.manual_seed(derive_seed(run.config.seed_of("data"), f"step {step} rank {distributed.rank()}"))
        run.seen[1] += int(loaded.checksum)
        batch = loaded.batch.to(run.device)

        loss = run.loss(run.wrapped(batch), batch)
        loss.backward()
        norm = clip(run)
        set_learning_rate(run.optimizer, learning_rate(step, config.steps, run.config.optim))
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.model.clamp_logit_scale(run.config.loss.max_logit_scale)

        done = step + 1
        run.tracker.advance()
        if at(done, config.log_every) or done == config.steps:
            log(run, done, loss, norm)
        if at(done, config.evaluate_every) and done < config.steps:
            timed(run, validate, run, done)
        signalled = distributed.stops(done, stop.name)
        # There is always a checkpoint after the last step: evaluation may fail, and must not cost the training.
        if signalled or done == config.steps or at(done, config.checkpoint_steps) or due(run, done, last_save):
            timed(run, run.save, done)
            last_save = time.monotonic()
        if signalled and done < config.steps:
            raise Stopped(f"stopped by {signalled} after step {done}; continue with:\n  {resume_command}")
    stop.patient = False


def at(done: int, every: int) -> bool:
    """Return whether something that happens every `every` steps happens after `done` steps; 0 means never."""
    return every > 0 and done % every == 0


def due(run: Run, done: int, last_save: float) -> bool:
    """Return whether a checkpoint is due by time. All processes get the same answer.

    Several processes agree at log steps only, where they synchronise anyway.
    """
    config = run.config.training
    if config.checkpoint_minutes is None or (distributed.world_size() > 1 and not at(done, config.log_every)):
        return False
    return distributed.any_process((time.monotonic() - last_save) / 60 >= config.checkpoint_minutes, run.device)


def clip(run: Run) -> torch.Tensor | None:
    """Clip the gradients if the config says so, and return their norm before."""
    largest = run.config.optim.clip_norm
    return None if largest is None else torch.nn.utils.clip_grad_norm_(run.model.parameters(), largest)


def log(run: Run, step: int, loss: torch.Tensor, norm: torch.Tensor | None) -> None:
    """Write the metrics of a step.

    Raises:
        Diverged: the loss is not finite.
        DataError: more samples are unreadable than `data.max_bad_fraction` allows.
    """
    value = float(distributed.mean_over_processes(loss.detach()))
    metrics = {
        "loss": value,
        "lr": learning_rate(step - 1, run.config.training.steps, run.config.optim),
        "logit_scale": float(run.model.logit_scale.detach().exp()),
    }
    if norm is not None:
        metrics["gradient_norm"] = float(norm)
    metrics |= exponent_range(run.model.image.pool)
    metrics |= run.watch.report(run.tracker.elapsed())
    run.tracker.log(step, **metrics)
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(metrics.get(name, 0.0)):
            raise run.diverged(f"the {name.replace('_', ' ')} is {metrics[name]} at step {step}")


def exponent_range(head: nn.Module) -> dict[str, Any]:
    """Return the least, median and greatest exponent of a head's power means, and all where they are few."""
    exponents = exponents_of(head)
    if exponents is None:
        return {}
    values = {"min": exponents.min(), "median": exponents.median(), "max": exponents.max()}
    found: dict[str, Any] = {f"exponent_{name}": round(float(value), 5) for name, value in values.items()}
    if 1 < exponents.numel() <= MOST_EXPONENTS:
        found["exponents"] = [round(value, 4) for value in exponents.flatten().tolist()]
    return found


def timed(run: Run, work: Any, *args: Any) -> None:
    """Do work whose time is left out of the training rate."""
    begin = time.perf_counter()
    work(*args)
    run.tracker.paused(time.perf_counter() - begin)


def validate(run: Run, step: int) -> None:
    """Evaluate on the held-out samples, on all processes, and write the metrics."""
    if not run.validation:
        return
    # The model changes with every step, so its embeddings are not worth keeping.
    results = evaluate({"model": run.model}, run.validation, dataclasses.replace(run.config.evaluation, cache=False))
    if run.accelerator.is_main_process:
        run.tracker.evaluation(step, flatten(results))
    distributed.barrier()


def flatten(results: list[Result]) -> dict[str, float]:
    """Return metrics by the name `DATASET/METRIC`."""
    return {
        f"{result.evalset.name}/{name}": value
        for result in results
        for name, value in {**result.evaluation.metrics, **result.evaluation.further}.items()
    }


def finish(run: Run, stop: StopSignal) -> None:
    """Write final/, evaluate once on the test sets, measure costs, and at the very end write the summary."""
    if stop:  # it arrived during the last step
        raise KeyboardInterrupt
    peak = peak_memory_mb(run.device)
    final, steps = run.folder / FINAL, run.config.training.steps
    if run.accelerator.is_main_process:
        with whole_folder(final, SafetensorError) as aside:
            save_model(run.model, aside)
    names = ", ".join(each.name for each in (*run.validation, *run.tests))
    run.tracker.say(f"{run.tracker.label}: trained {steps} steps; {f'evaluating on {names}' if names else 'no sets'}")
    validate(run, steps)
    checksum, bad = run.checksum(), run.watch.counts()["bad"]
    results = evaluate({run.folder.name: run.model}, run.tests, run.config.evaluation)
    if run.accelerator.is_main_process:
        about = describe(run)
        if results:
            write_results(results, run.folder / RESULTS, {**about, "evaluations": 1 + evaluations(run.folder)})
            run.tracker.say(results_table(results, most=5))
        run.tracker.say(f"{run.tracker.label}: measuring what the model costs")
        summary = {
            "steps": steps,
            "batches": f"{checksum % 2**64:016x}",
            "bad_samples": bad,
            "cost": costs(run, peak),
            **about,
            "config": plain(run.config.to_dict()),
        }
        write_json(run.folder / SUMMARY, summary)
        run.tracker.say(f"done: {final}")
    distributed.barrier()


def evaluations(folder: Path) -> int:
    """Return how often figures on the test sets have been written to a run's folder."""
    try:
        return int(read_results(folder / RESULTS).get("evaluations", 1))
    except (FileNotFoundError, DamagedFile):
        return 0


def costs(run: Run, peak_mb: float) -> dict[str, float]:
    """Return what the model of the run costs; see `mmrep.training.costs`."""
    # A run that was resumed after its last step has measured no rates.
    rates = run.tracker.rates or logged_rates(run.folder / METRICS)
    return {
        "params": count_parameters(run.model),
        "gmacs": round(image_gmacs(run.model), 6),
        "pairs_per_s": round(statistics.median(rates), 2) if rates else 0.0,
        "images_per_s": round(1 / latency(run.model, run.config.evaluation.batch_size), 2),
        "peak_mb": round(peak_mb, 1),
    }


def logged_rates(metrics: Path) -> list[float]:
    """Return the pairs per second of all logged steps of a metrics file."""
    return [record["pairs_per_s"] for record in read_json_lines(metrics) if "pairs_per_s" in record]


def describe(run: Run) -> dict[str, Any]:
    """Return digests and versions that identify what a result belongs to."""
    with (run.folder / "final" / WEIGHTS).open("rb") as file:
        model = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.dumps(run.config.to_dict(), sort_keys=True)
    packages = ("torch", "timm", "open_clip_torch", "accelerate")
    return {
        "model_digest": model,
        "config_digest": hashlib.sha256(config.encode()).hexdigest(),
        "data": run.steps.sources.describe(),
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else platform.machine(),
        "versions": {"mmrep": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
    }
