"""Checkpoints: safetensors and JSON with a manifest, written aside, verified, then renamed; one time line a run."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrep.config.checks import ConfigError, MmrepError
from mmrep.files import DamagedFile, WriteError, read_json, whole_folder, write_errors

LOG = logging.getLogger("mmrep")

MANIFEST, STATE, OPTIMIZER, WEIGHTS = "manifest.json", "state.json", "optimizer.safetensors", "model.safetensors"
SET_ASIDE = "set_aside"
_SEPARATOR = "::"


class CheckpointError(WriteError):
    """A checkpoint could not be written. Exit status 1."""


class Diverged(MmrepError):
    """A loss, weight or optimiser state is not finite any more. Exit status 1."""


class Restored(NamedTuple):
    """What a checkpoint holds besides weights."""

    folder: Path
    state: dict[str, Any]


def step_folder(run: Path, step: int) -> Path:
    """Return where the checkpoint after `step` steps lies."""
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
    """Write a checkpoint; only then remove the oldest past `keep`.

    Args:
        run: the run's folder.
        step: steps done.
        model: its parameters and buffers are kept.
        optimizer: its state is kept by parameter name.
        state: what else is needed to continue (JSON).
        keep: how many checkpoints stay, by the order in which they were written.
        describe: writes further files (config.json) into the folder.

    Raises:
        Diverged: a weight or optimiser state is not finite; nothing is written or removed.
        CheckpointError: the disk is full or not writable, or what was written reads back differently; older
            checkpoints stay.
    """
    place = step_folder(run, step)
    tensors = {WEIGHTS: model.state_dict(), OPTIMIZER: dict(_optimizer_tensors(model, optimizer))}
    for file, values in tensors.items():
        broken = next((name for name, value in values.items() if not value.isfinite().all()), None)
        if broken:
            what = "the weights" if file == WEIGHTS else "the optimiser's state"
            raise Diverged(f"{what} of {broken.replace(_SEPARATOR, ' ')} are not finite after step {step}")
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
    """Return the checkpoints of a run, the one written last at the end. Folders with other names are the user's."""
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
    """Return the place of a checkpoint in the order of writing; 0 where it is not known."""
    try:
        return int(read_json(checkpoint / MANIFEST).get("written", 0))
    except (OSError, ValueError, TypeError):
        return 0


def find_checkpoint(run: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is whole; damaged ones are passed over, each with a warning."""
    for folder in reversed(list_checkpoints(run)):
        problem = find_damage(folder)
        if not problem:
            return folder
        warn(f"checkpoint {folder} is damaged and passed over: {problem}")
    return None


def set_aside(run: Path, step: int, finished: list[str]) -> Path | None:
    """Move what a run has written after `step` into a folder of its own, since training goes another way from there.

    Args:
        run: the run's folder.
        step: the step from which it goes on.
        finished: files and folders of the run that belong to its end; they go along with the checkpoints.

    Returns:
        The folder; None where there was nothing to move.
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
    """Return what is wrong with a checkpoint by its manifest; empty if nothing."""
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
    """Return what a checkpoint holds besides weights.

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
    """Load weights and optimiser state.

    Raises:
        ConfigError: the checkpoint is damaged, or of another model.
    """
    state = read_state(folder)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
        _load_optimizer(model, optimizer, load_file(folder / OPTIMIZER))
    except (RuntimeError, KeyError, ValueError, SafetensorError) as error:
        raise ConfigError(f"checkpoint {folder} is of another model: {' '.join(str(error).split())}") from error
    return Restored(folder, state)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            yield f"{names[id(parameter)]}{_SEPARATOR}{key}", value


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, entry = key.partition(_SEPARATOR)
        parameter = parameters[name]
        # Fused AdamW reads moments as if they had the parameter's shape, whatever they have.
        expected = torch.Size() if entry == "step" else parameter.shape
        if value.shape != expected:
            raise ValueError(f"optimiser state {key} has shape {tuple(value.shape)}, expected {tuple(expected)}")
        # Fused AdamW keeps its step counter in fp32 on the parameter's device, like the moments.
        optimizer.state[parameter][entry] = value.to(parameter.device)


def _fingerprint(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
