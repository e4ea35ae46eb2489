"""The queue of a study's runs. Workers on one machine or many take the next free run by the lock on its folder.

A worker that dies releases its lock; another one continues the run from its last checkpoint. A run that fails is
recorded with its message, and the rest goes on.
"""

import logging
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from mmrep import distributed
from mmrep.config.checks import MmrepError
from mmrep.config.tree import CompareConfig
from mmrep.files import Busy, locked, read_json, write_json
from mmrep.study.plan import FAILURE, PlannedRun, conclude_tuning, plan_runs, read_tuning, tuning_runs
from mmrep.training.resume import is_finished
from mmrep.training.signals import Stopped
from mmrep.training.trainer import train

LOG = logging.getLogger("mmrep")
PAUSE = 2.0
"""Seconds between two looks for a free run."""


def work(config: CompareConfig, resume_command: str, finish: Callable[[PlannedRun], object], wait: bool) -> None:
    """Train the runs of a study that no other worker is training, until all are finished or failed.

    Several processes of one launcher are one worker: the first chooses the run, and all train it.

    Args:
        config: the study.
        resume_command: command to print when a signal ends the study.
        finish: called after each of the compared runs.
        wait: whether to stay while others train the last runs, to take over should one of them die.

    Raises:
        Stopped: a signal ended this worker.
    """
    began, busy = time.time(), set[Path]()
    while True:
        pending = distributed.of_first(_pending(config, began) if distributed.rank() == 0 else [])
        run = next((run for run in pending if run.folder not in busy), None)
        if run is None:
            if not pending or not (wait or _more_to_come(config)):
                return
            time.sleep(PAUSE)
            busy.clear()
            continue
        try:
            train(run.config, resume_command, label=f"[{position(run, config)}] {run.name}")
            if run.tuned is None:
                finish(run)
        except Busy:
            busy.add(run.folder)
            if distributed.world_size() > 1:
                raise
        except Exception as error:
            if isinstance(error, Stopped) or distributed.world_size() > 1:
                raise
            record_failure(run, error)
        else:
            (run.folder / FAILURE).unlink(missing_ok=True)


def _pending(config: CompareConfig, began: float) -> list[PlannedRun]:
    """Return the runs that are neither finished nor have failed since `began`, earlier failures last."""
    if config.study.tune.values:
        with locked(Path(config.output_dir), timeout=60):
            conclude_tuning(config)
    chosen = read_tuning(config)
    ready = [run for run in tuning_runs(config) if run.pool not in chosen] + plan_runs(config)
    pending = [run for run in ready if _failed_at(run) < began and not is_finished(run.config)]
    return sorted(pending, key=lambda run: _failed_at(run) > -math.inf)


def _more_to_come(config: CompareConfig) -> bool:
    """Return whether further runs follow once others have finished tuning."""
    return bool(config.study.tune.values) and len(read_tuning(config)) < len(config.study.arms())


def position(run: PlannedRun, config: CompareConfig) -> str:
    """Return the number of a run among all runs of its kind, as in `3/12`."""
    arms = [arm.label for arm in config.study.arms()]
    if run.tuned is not None:
        names = [each.folder for each in tuning_runs(config)]
        return f"{names.index(run.folder) + 1}/{len(names)}"
    seeds = config.study.seeds
    return f"{seeds.index(run.seed) * len(arms) + arms.index(run.pool) + 1}/{len(seeds) * len(arms)}"


def record_failure(run: PlannedRun, error: Exception) -> None:
    """Write why a run failed into its folder, and log it."""
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, MmrepError):
        message = f"{type(error).__name__}: {message}"
    content = {"message": message, "time": time.time()}
    if not isinstance(error, MmrepError):
        content["traceback"] = "".join(traceback.format_exception(error))
    write_json(run.folder / FAILURE, content)
    again = "" if run.tuned else "; the same command tries it again"
    LOG.error("%s failed: %s (the other runs go on%s)", run.name, message, again)


def _failed_at(run: PlannedRun) -> float:
    """Return when a run failed, as seconds since the epoch, or -inf if it did not fail."""
    try:
        return float(read_json(run.folder / FAILURE)["time"])
    except FileNotFoundError:
        return -math.inf
