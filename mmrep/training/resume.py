"""Resuming a run: choosing a checkpoint, comparing it with the config, and setting later results aside."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmrep import distributed
from mmrep.config.checks import ConfigError, require
from mmrep.config.loss import LossConfig
from mmrep.config.model import ModelConfig
from mmrep.config.pooling import PoolConfig
from mmrep.config.training import OptimConfig, TrainingConfig
from mmrep.config.tree import TrainConfig, changed_fields
from mmrep.data.inventory import name_difference
from mmrep.data.loader import Steps, data_state
from mmrep.files import DamagedFile, read_json, write_errors
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import MODEL_CONFIG, WEIGHTS
from mmrep.training.checkpoint import find_checkpoint, load_checkpoint, read_state, set_aside
from mmrep.training.optim import learning_rate
from mmrep.training.output import (
    FINAL,
    INITIAL,
    INVENTORY,
    METRICS,
    OUTCOMES,
    RESULTS,
    RUN_CONFIG,
    SUMMARY,
    read_config,
    read_results,
)  # fmt: skip

LOG = logging.getLogger("mmrep")

_PLACE = ("output_dir", "resume")
_SPEED = (
    *(f"training.{name}" for name in ("checkpoint_", "keep_", "log_", "evaluate_", "micro_batch", "compile", "grad_")),
    *(f"data.{name}" for name in ("workers", "prefetch", "decoded_gb", "cache_", "stage", "ledger")),
    *(f"evaluation.{name}" for name in ("batch_size", "text_batch_size", "workers", "cache")),
    "model.allow_pickle",
)
"""Options that change neither the model nor its results, except for rounding."""
_COMPARED_ELSEWHERE = ("data.", "evaluation.")
"""Options compared elsewhere: those of data with the checkpoint's data. Evaluation does not change the model."""


def is_finished(config: TrainConfig) -> bool:
    """Return whether a run's folder holds the finished run of this config. A damaged file is named in a warning."""
    folder = Path(config.output_dir)
    if not (folder / SUMMARY).exists():
        return False
    try:
        summary = read_json(folder / SUMMARY)
        read_json(folder / INITIAL)
        read_json(folder / FINAL / MODEL_CONFIG)
        if config.evaluation.sets:
            read_results(folder / RESULTS)
        with safe_open(folder / FINAL / WEIGHTS, "pt"):
            pass  # opening it compares the size of the file with its header
        before = summary.get("config") or read_config(folder / RUN_CONFIG)
    except FileNotFoundError as error:
        LOG.warning("%s is missing: the end of the run is done again", error.filename)
        return False
    except (DamagedFile, SafetensorError, OSError) as error:
        reason = f"{folder / FINAL / WEIGHTS}: damaged" if isinstance(error, SafetensorError) else str(error)
        LOG.warning("%s: the end of the run is done again", reason)
        return False
    return not any(not key.startswith(_SPEED) for key in _changes(before, config))


def resume(
    config: TrainConfig, folder: Path, model: DualEncoder, optimizer: torch.optim.Optimizer, steps: Steps
) -> dict[str, Any]:
    """Load the checkpoint that `resume` asks for into model and optimiser.

    Returns:
        The state of the checkpoint, empty for a new run.

    Raises:
        ConfigError: the checkpoint is damaged, or has other data or another config; the difference is named.
    """
    if config.resume == "none":
        return {}
    # The first process chooses for all, since another one may see a stale folder on a network file system.
    chosen = _choose(config, folder) if distributed.rank() == 0 else None
    text = distributed.first_text(str(chosen or ""))
    if not text:
        if (folder / METRICS).exists():
            LOG.info("no checkpoint in %s yet: starting from the beginning", folder)
        return {}
    place = Path(text)
    state = read_state(place)
    changed = changed_fields(state.get("data", {}), data_state(steps))
    if changed:
        name, (before, now) = next(iter(changed.items()))
        difference = name_difference(place.parent.parent / INVENTORY, steps.sources)
        raise ConfigError(
            f"checkpoint {place} was made with other data: {name} was {before}, is {now}"
            f"{f' ({difference})' if difference else ''}; restore it, or start a new run in another --output_dir"
        )
    _check_config(config, place, state)
    load_checkpoint(place, model, optimizer)
    LOG.info("resuming from %s", place)
    return state


def _choose(config: TrainConfig, folder: Path) -> Path | None:
    return find_checkpoint(folder, LOG.warning) if config.resume == "auto" else Path(config.resume)


def _check_config(config: TrainConfig, place: Path, state: dict[str, Any]) -> None:
    """Compare the config of a checkpoint with the one to resume it with.

    Raises:
        ConfigError: an option that changes the model differs, and `resume_changes` is `refuse`.
    """
    step, steps, insist = int(state["step"]), config.training.steps, config.resume_changes == "allow"
    require(
        step <= steps,
        f"training.steps: {place} has done {step} steps, more than {steps}; to go on from an earlier one, give its "
        "folder as --resume",
    )
    before = state.get("config")
    if before is None:  # of a version that did not write it there
        file = place.parent.parent / RUN_CONFIG
        before = read_config(file) if file.is_file() else {}
    for key, (old, new) in _changes(before, config).items():
        if key.startswith((*_SPEED, *_COMPARED_ELSEWHERE)):
            LOG.info("resuming with another %s: it was %s, is %s", key, old, new)
            continue
        reason = ""
        if key == "training.steps":
            rates = [[learning_rate(i, total, config.optim) for i in range(step)] for total in (int(old), steps)]
            if rates[0] == rates[1]:
                LOG.info("training on to %d steps: the run was one of %d", steps, old)
                continue
            then, now = (learning_rate(min(step, total), total, config.optim) for total in (int(old), steps))
            reason = (
                f" (a {config.optim.schedule} schedule over {old} steps has brought the learning rate to {then:.3g}, "
                f"and one over {steps} would go on at {now:.3g}; only optim.schedule constant has no end)"
            )
        require(
            insist,
            f"checkpoint {place} was made with {key} = {old}, not {new}{reason}: restore it, start a new run in "
            "another --output_dir, or insist with --resume_changes allow",
        )
        LOG.warning("resuming with another %s: it was %s, is %s; losses will not be those of one run", key, old, new)


def _changes(before: dict[str, Any], config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return where an earlier config differs from this one, output folders left out: dotted key → (then, now)."""
    if not before:
        return {}
    before, now = (json.loads(json.dumps(each)) for each in (before, config.to_dict()))  # JSON turns keys into text
    parts: dict[str, Any] = {
        "model": ModelConfig(),
        "optim": OptimConfig(),
        "loss": LossConfig(),
        "training": TrainingConfig(),
    }
    seeds = {"data": None, "trunk": None, "head": None}
    defaults: dict[str, Any] = {"resume_changes": "refuse", "seeds": seeds} | {
        name: plain(dataclasses.asdict(part)) for name, part in parts.items()
    }
    found = changed_fields(_long(_filled(before, defaults)), _long(now))
    return {key: values for key, values in found.items() if not key.startswith(_PLACE)}


def _filled(content: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return a config with defaults for options that it lacks, because an older version has written it."""
    found = dict(defaults)
    for key, value in content.items():
        both = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        found[key] = _filled(value, defaults[key]) if both else value
    return found


def _long(content: dict[str, Any]) -> dict[str, Any]:
    """Return a config with its heads as mappings, so that `avg` and `{name: avg}` are equal."""
    model = dict(content["model"])
    for key in ("pool", "pool_base"):
        if model.get(key) is not None:
            pool = PoolConfig.parse(model[key], f"model.{key}")
            model[key] = {"name": pool.name, "args": pool.args}
    return {**content, "model": model}


def set_later_aside(config: TrainConfig, first: int) -> None:
    """Move aside what a run wrote after the step that it goes on from, and the results of its former end."""
    folder = Path(config.output_dir)
    goes_on = first < config.training.steps
    finished = [FINAL, SUMMARY, RESULTS, OUTCOMES] if goes_on and (folder / SUMMARY).exists() else []
    place = set_aside(folder, first, finished)
    if place is None:
        return
    if (folder / METRICS).exists():
        with write_errors(place / METRICS):
            shutil.copyfile(folder / METRICS, place / METRICS)
    LOG.warning("going on from step %d: later checkpoints and results are moved to %s", first, place)


def plain(value: Any) -> Any:
    """Return a value with tuples as lists, for YAML and JSON."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
