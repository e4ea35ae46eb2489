"""Running a study: planning, training what is missing, collecting results."""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml

from mmrep import distributed
from mmrep.config.checks import ConfigError, require
from mmrep.config.tree import CompareConfig, ScreenConfig, changed_fields
from mmrep.files import locked, write_errors, write_text
from mmrep.study.collect import collect, finished_runs, kind_of, write_study
from mmrep.study.diagnosis import diagnose, draw_patch_weights
from mmrep.study.pictures import write_pictures
from mmrep.study.plan import plan_runs
from mmrep.study.queue import work
from mmrep.study.screen import screen
from mmrep.training.build import with_precision
from mmrep.training.output import HISTORY, RUN_CONFIG, STUDY, SUMMARY, check_kind, read_config
from mmrep.training.resume import plain
from mmrep.training.signals import Stopped, StopSignal

LOG = logging.getLogger("mmrep")
_NOT_RECIPE = ("study.", "output_dir", "resume", "workers", "join", "dry_run")


def compare(config: CompareConfig, command: str) -> dict[str, Any]:
    """Train every head with every seed, evaluate each run once, and compare. Another call continues an interrupted one.

    Args:
        config: the study, and the recipe that its runs share.
        command: the command that makes and continues the study.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: the folder holds another study.
        Stopped: a signal ended the study.
    """
    alone = config.workers == 1 or config.join or distributed.launched() == 1
    require(alone, "workers: each worker has one process; leave accelerate launch out")
    device = distributed.start()
    folder, first = Path(config.output_dir), distributed.rank() == 0
    if first:
        with locked(folder, timeout=60):
            prepare(config)
    distributed.barrier()
    config = with_precision(config, device)
    if config.workers != 1 and not config.join:
        _side_by_side(config, command)
    with StopSignal() as stop:
        try:
            work(config, command, lambda run: diagnose(config, [run], draw=False), wait=not config.join)
            with locked(folder, timeout=60) if first else nullcontext():
                return _conclude(config, command)
        except KeyboardInterrupt as interrupt:
            name = stop.name or "a signal"
            raise Stopped(f"stopped by {name} between two runs; continue with:\n  {command}") from interrupt


def compare_on_one_trunk(config: ScreenConfig, command: str) -> dict[str, Any]:
    """Compare the heads of a study on one frozen trunk; see `mmrep.study.screen`.

    Args:
        config: the heads, the seeds and the recipe.
        command: the command that makes and continues it.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: the folder holds something else.
        Stopped: a signal ended it.
    """
    folder = Path(config.output_dir)
    with StopSignal() as stop, locked(folder):
        try:
            prepare(config)
            screen(config, command)
            draw_patch_weights(config, finished_runs(config))
            write_pictures(config, finished_runs(config))
            results = collect(config, command)
            write_study(folder, results)
            return results
        except KeyboardInterrupt as interrupt:
            raise Stopped(f"stopped by {stop.name or 'a signal'}; continue with:\n  {command}") from interrupt


def prepare(config: CompareConfig) -> None:
    """Check that the folder holds no other study, and write study.yaml. The caller holds the folder's lock.

    Raises:
        ConfigError: the folder holds something else, or a study with another recipe; the first difference is named.
    """
    folder = Path(config.output_dir)
    check_kind("output_dir", folder, "a study")
    recipe = plain(config.to_dict())
    for name in ("workers", "join", "dry_run"):
        del recipe[name]
    recipe["kind"] = kind_of(config)
    before = read_config(folder / STUDY) if (folder / STUDY).is_file() else {}
    if before:
        before.setdefault("kind", "compare")
    for key, (old, new) in changed_fields(before or recipe, recipe).items():
        if not key.startswith(_NOT_RECIPE):
            raise ConfigError(
                f"{folder} holds a study with {key} = {old}, not {new}: "
                "choose another --output_dir, or restore the setting to continue"
            )
    record_changes(config, before.get("study", {}), recipe["study"])
    write_text(folder / STUDY, yaml.safe_dump(recipe, sort_keys=False))
    for run in plan_runs(config):
        place = run.folder / RUN_CONFIG
        pool = read_config(place).get("model", {}).get("pool") if place.is_file() else None
        require(
            pool in (None, run.config.model.pool),
            f"{place} has pool {pool}, not {run.config.model.pool}: give one of them another label",
        )


def record_changes(config: CompareConfig, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Append to the study's history what of its plan has changed since runs were finished.

    Raises:
        ConfigError: the tuning has changed, whose choice is made already.
    """
    done = len(finished_runs(config))
    texts, changed = [], []
    for key in ("seeds", "pools", "primary", "baseline", "vary", "axes", "tune", "confidence"):
        old, new = before.get(key), now[key]
        if not before or old == new:
            continue
        require(
            key not in ("tune", "vary"),
            f"study.{key}: was {old}, is {new}; runs are trained already: restore it, or choose another --output_dir",
        )
        changed.append(key)
        if isinstance(old, list) and isinstance(new, list):
            added = [each for each in new if each not in old]
            dropped = [each for each in old if each not in new]
            parts = [f"{what} {_listed(each)}" for what, each in (("added", added), ("dropped", dropped)) if each]
            texts.append(f"{key}: {' and '.join(parts)}")
        else:
            texts.append(f"{key}: changed from {old} to {new}")
    if texts and done:
        text = f"{'; '.join(texts)}, after {done} runs were finished"
        place = Path(config.output_dir) / HISTORY
        with write_errors(place), place.open("a", encoding="utf-8") as file:
            entry = {"time": time.strftime("%Y-%m-%d %H:%M"), "text": text, "changed": changed}
            file.write(json.dumps(entry) + "\n")


def _listed(values: list[Any]) -> str:
    return ", ".join(map(str, values))


def _side_by_side(config: CompareConfig, command: str) -> None:
    """Train with several workers on this machine, each a process with a log of its own, until they have ended.

    A worker that dies leaves its run to the others; what all leave, the caller trains.
    """
    devices = _visible_devices()
    count = (len(devices) or 1) if config.workers == "auto" else int(config.workers)
    if count == 1:
        return
    folder = Path(config.output_dir)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    workers = []
    for number in range(count):
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        words = [sys.executable, "-m", *shlex.split(command), "--join", "true"]
        with (folder / f"worker-{number}.log").open("ab") as log:
            workers.append(subprocess.Popen(words, stdout=log, stderr=log, env=environment))  # noqa: S603  # our own
    LOG.info("%d workers train side by side; what they print is in %s", count, folder / "worker-*.log")
    planned, known = len(config.study.seeds) * len(config.study.arms()), set[Path]()
    with StopSignal() as stop:
        stop.patient = True
        while any(worker.poll() is None for worker in workers):
            time.sleep(1)
            if stop:
                for worker in workers:
                    worker.terminate()
                for worker in workers:
                    worker.wait()
                raise Stopped(f"stopped by {stop.name}; continue with:\n  {command}")
            for place in sorted(folder.glob(f"runs/*/{SUMMARY}")):
                if place.parent not in known:
                    known.add(place.parent)
                    LOG.info("%d of %d runs are finished: %s", len(known), planned, place.parent.name)
    for number, worker in enumerate(workers):
        if worker.returncode:
            LOG.warning(
                "worker %d ended with status %d: see %s", number, worker.returncode, folder / f"worker-{number}.log"
            )


def _visible_devices() -> list[str]:
    """Return the GPUs that workers may use, as CUDA_VISIBLE_DEVICES names them."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]


def _conclude(config: CompareConfig, command: str) -> dict[str, Any]:
    """Collect results and diagnose the models. This is a collective, since models are evaluated on all processes."""
    folder, first = Path(config.output_dir), distributed.rank() == 0
    results = collect(config, command)
    if first:
        write_study(folder, results)
    if config.join and results["interim"]:  # the last worker draws, once for all
        return results
    diagnose(config, finished_runs(config))
    write_pictures(config, finished_runs(config))
    distributed.barrier()
    results = collect(config, command)
    if first:
        write_study(folder, results)
    distributed.barrier()
    return results
