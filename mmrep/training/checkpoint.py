"""Checkpoints: safetensors and JSON with a manifest, written aside, verified, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrep.config.checks import ConfigError, MmrepError

MANIFEST, STATE, OPTIMIZER, WEIGHTS = "manifest.json", "state.json", "optimizer.safetensors", "model.safetensors"
_SEPARATOR = "::"


class CheckpointError(MmrepError):
    """A checkpoint could not be written. Exit status 1."""


class Restored(NamedTuple):
    """What a checkpoint holds besides weights."""

    folder: Path
    state: dict[str, Any]


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run / "checkpoints" / f"step_{step:08d}"


def save_checkpoint(
    run: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    describe: Callable[[Path], None] | None = None,
) -> Path:
    """Writes a checkpoint; only then removes the oldest past `keep`.

    Args:
        run: the run's folder.
        step: steps done.
        model: its parameters and buffers are kept.
        optimizer: its state is kept by parameter name.
        state: what else is needed to continue (JSON).
        keep: how many checkpoints stay.
        describe: writes further files (config.json) into the folder.

    Raises:
        CheckpointError: the disk is full or not writable, or what was written reads back differently; older
            checkpoints stay.
    """
    place = step_folder(run, step)
    aside = place.with_name(f".writing-{place.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, aside / WEIGHTS
        )
        save_file(_optimizer_tensors(model, optimizer), aside / OPTIMIZER)
        _write_json(aside / STATE, {"step": step, **state})
        if describe:
            describe(aside)
        manifest = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
        _write_json(aside / MANIFEST, {"files": manifest})
        for path in aside.iterdir():
            _flush(path)
        problem = find_damage(aside)
        if problem:
            raise OSError(0, f"written, but reads back differently: {problem}")
        shutil.rmtree(place, ignore_errors=True)
        aside.rename(place)
        _flush(place.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{place}: can't write checkpoint: {reason}; older checkpoints are untouched") from error
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return place


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def find_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are passed over, each with a warning."""
    for folder in reversed(list_checkpoints(run)):
        problem = find_damage(folder)
        if not problem:
            return folder
        warn(f"checkpoint {folder} is damaged and passed over: {problem}")
    return None


def find_damage(folder: Path) -> str:
    """What is wrong with a checkpoint by its manifest; empty if nothing."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST} can't be read ({type(error).__name__})"
    for name, expected in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _fingerprint(folder / name) != expected:
            return f"{name} differs from its digest"
    return ""


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Restored:
    """Loads weights and optimiser state.

    Raises:
        ConfigError: the checkpoint is damaged, or of another model.
    """
    problem = find_damage(folder)
    if problem:
        raise ConfigError(f"checkpoint {folder}: {problem}")
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
        _load_optimizer(model, optimizer, load_file(folder / OPTIMIZER))
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"checkpoint {folder} is of another model: {' '.join(str(error).split())}") from error
    return Restored(folder, json.loads((folder / STATE).read_text(encoding="utf-8")))


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}{_SEPARATOR}{key}": value.detach().cpu().contiguous()
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.partition(_SEPARATOR)
        parameter = parameters[name]
        # Fused AdamW keeps its step counter in fp32 on the parameter's device, like the moments.
        optimizer.state[parameter][entry] = value.to(parameter.device)


def _fingerprint(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
