"""Checkpoints: safetensors and JSON with a manifest. They are written aside, verified, then renamed."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.files import DamagedFile, WriteError, read_json, whole_folder, write_errors

LOG = logging.getLogger("mmrep")

MANIFEST, STATE, OPTIMIZER, WEIGHTS = "manifest.json", "state.json", "optimizer.safetensors", "model.safetensors"
SET_ASIDE = "set_aside"
_BY_NAME = StateDictOptions(flatten_optimizer_state_dict=True)


class CheckpointError(WriteError):
    """A checkpoint could not be written. Exit status 1."""


class Diverged(MmrepError):
    """A loss, weight or optimiser state is no longer finite. Exit status 1."""


class Restored(NamedTuple):
    """The content of a checkpoint besides weights."""

    folder: Path
    state: dict[str, Any]


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps."""
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
    """Write a checkpoint. Only then remove the oldest ones beyond `keep`.

    Args:
        run: folder of the run.
        step: number of steps done.
        model: module whose parameters and buffers are saved.
        optimizer: optimiser whose state is saved by parameter name.
        state: further content (JSON).
        keep: number of checkpoints that stay, the last ones written.
        describe: function that writes further files (config.json) into the folder.

    Raises:
        Diverged: a weight or optimiser state is not finite. Nothing is written or removed.
        CheckpointError: the disk is full or not writable, or what was written reads back differently. Older
            checkpoints stay.
    """
    place = step_folder(run, step)
    tensors = {WEIGHTS: model.state_dict(), OPTIMIZER: _optimizer_tensors(model, optimizer)}
    for file, values in tensors.items():
        broken = next((name for name, value in values.items() if not value.isfinite().all()), None)
        if broken:
            what = "the weights" if file == WEIGHTS else "the optimiser's state"
            raise Diverged(f"{what} of {broken.removeprefix('state.')} are not finite after step {step}")
    written = 1 + max((_written(each) for each in list_checkpoints(run)), default=0)
    try:
        with whole_folder(place, SafetensorError) as aside:
            for file, values in tensors.items():
                save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, aside / file)
            _write_json(aside / STATE, {"step": step, **state})
            if describe:
                describe(aside)
            manifest = {path.name: _fingerprint(path) for path in sorted(aside.iterdir())}
            _write_json(aside / MANIFEST, {"written": written, "files": manifest})
            problem = find_damage(aside)
            if problem:
                raise OSError(0, f"written, but reads back differently: {problem}")
    except WriteError as error:
        raise CheckpointError(f"checkpoint {error}; older checkpoints are untouched") from error
    ours = [each for each in list_checkpoints(run) if (each / MANIFEST).is_file()]
    for old in ours[:-keep]:
        with write_errors(old):
            shutil.rmtree(old)
    return place


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run in the order of writing. Folders with other names belong to the user."""
    found = [
        place
        for place in (run / "checkpoints").glob("step_*")
        if re.fullmatch(r"step_\d{8,}", place.name) and place.is_dir() and not place.is_symlink()
    ]
    return sorted(found, key=lambda place: (_written(place), step_of(place)))


def step_of(checkpoint: Path) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def _written(checkpoint: Path) -> int:
    """Return the position of a checkpoint in the order of writing, or 0 where it is unknown."""
    try:
        return int(read_json(checkpoint / MANIFEST).get("written", 0))
    except (OSError, ValueError, TypeError):
        return 0


def find_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint. Damaged ones are passed over, each with a warning."""
    for folder in reversed(list_checkpoints(run)):
        problem = find_damage(folder)
        if not problem:
            return folder
        warn(f"checkpoint {folder} is damaged and passed over: {problem}")
    return None


def set_aside(run: Path, step: int, finished: list[str]) -> Path | None:
    """Move what a run has written after `step` into a folder of its own, before training goes on from there.

    Args:
        run: folder of the run.
        step: the step that training goes on from.
        finished: files and folders of a finished run, which are moved too.

    Returns:
        The new folder, or None where there was nothing to move.
    """
    later = [place for place in list_checkpoints(run) if step_of(place) > step]
    later += [run / name for name in finished if (run / name).exists()]
    if not later:
        return None
    taken = [place.name for place in (run / SET_ASIDE).glob("*")]
    number = next(i for i in range(1, len(taken) + 2) if f"{i:03d}" not in taken)
    folder = run / SET_ASIDE / f"{number:03d}"
    with write_errors(folder):
        for place in later:
            target = folder / place.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            place.rename(target)
    return folder


def find_damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint according to its manifest, or an empty text."""
    try:
        files = dict(read_json(folder / MANIFEST)["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} can't be read ({type(error).__name__})"
    for name in (*files, WEIGHTS, OPTIMIZER, STATE):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _fingerprint(folder / name) != files.get(name):
            return f"{name} differs from its digest"
    return ""


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint besides weights.

    Raises:
        ConfigError: the checkpoint is damaged.
    """
    problem = find_damage(folder)
    if problem:
        raise ConfigError(f"checkpoint {folder}: {problem}")
    try:
        return read_json(folder / STATE)
    except DamagedFile as error:
        raise ConfigError(f"checkpoint {error}") from error


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Restored:
    """Load a checkpoint's weights and optimiser state into a model and its optimiser.

    Raises:
        ConfigError: the checkpoint is damaged, or belongs to another model.
    """
    state = read_state(folder)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
        _load_optimizer(model, optimizer, load_file(folder / OPTIMIZER))
    except (RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise ConfigError(f"checkpoint {folder} is of another model: {' '.join(str(error).split())}") from error
    return Restored(folder, state)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `state.PARAMETER.ENTRY`, as torch names it."""
    state = get_optimizer_state_dict(model, optimizer, options=_BY_NAME)
    return {name: value for name, value in state.items() if name.startswith("state.")}  # type: ignore[misc]  # tensors


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    optimizer.zero_grad()  # torch initialises the state of an optimiser only where there are no gradients
    own: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_BY_NAME)
    expected = {name: value.shape for name, value in own.items() if isinstance(value, Tensor)}
    if tensors.keys() != expected.keys():
        raise KeyError(f"optimiser state of {next(iter(tensors.keys() ^ expected.keys()))}")
    for name, value in tensors.items():
        # Fused AdamW reads moments as if they had the parameter's shape, whatever shape they have.
        if value.shape != expected[name]:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name])}")
    own.update(tensors)
    set_optimizer_state_dict(model, optimizer, own, options=_BY_NAME)


def _fingerprint(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
