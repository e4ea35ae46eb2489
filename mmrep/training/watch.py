"""Reports of the loader during training: skipped samples, time waited for batches, the ledger."""

import json
import logging
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch

from mmrep import distributed
from mmrep.data.ledger import Ledger
from mmrep.data.loader import Loaded, Steps
from mmrep.data.pairs import Seconds
from mmrep.data.tar import DataError
from mmrep.files import read_json_lines, write_errors, write_text

LOG = logging.getLogger("mmrep")

BAD_SAMPLES = "bad_samples"
SPAN = 10_000
"""Pairs over which `data.max_bad_fraction` is measured, or those of the run if it has fewer. After ten times as many,
counting starts again, so that a disk that fails late cannot use up what earlier samples left."""
_LOGGED = 20
_SLOW = 0.1
_LONG, _REMIND_SECONDS = 10.0, 600.0
_ADVICE = {
    "download": "shards arrive slower than they are used: raise data.cache_gb, lower data.shuffle_block, or copy them",
    "read": "the disk is slow: data.stage copies shards to one of the node",
    "decode": "raise data.workers, set data.decoded_gb if the set fits, or data.dct_scaling for large photos",
    "text": "tokenising is the bottleneck: raise data.workers",
    "queue": "batches are ready late though the loaders are idle: raise data.prefetch",
}


class Span(NamedTuple):
    """Seconds of training, and the seconds of them spent waiting for batches."""

    seconds: float = 0.0
    waited: float = 0.0


class DataWatch:
    """Counts and logs the bad samples that the loader reports, and limits their share.

    Args:
        steps: the batches of this process.
        folder: folder of the run.
        device: device on which counts of several processes are summed.
        workers: number of loader processes.
        first: number of steps done before.
        state: counts from the checkpoint that the run starts from, if any.
    """

    def __init__(
        self, steps: Steps, folder: Path, device: torch.device, workers: int, first: int, state: dict[str, int] | None
    ) -> None:
        self._steps = steps
        self._folder = folder
        self._device = device
        self._workers = workers
        self._step = self._counted = first
        self._counts = {"bad": 0, "span_bad": 0, "span_pairs": 0} | (state or {})
        self._bad, self._logged = 0, 0
        self._waited, self._loading = 0.0, Seconds()
        self._reminded = -math.inf
        self._started, self._span = False, Span()
        self._forget_from(first * steps.plan.global_batch)
        self._ledger = Ledger(folder, steps, distributed.rank()) if steps.config.ledger else None

    def _forget_from(self, slot: int) -> None:
        """Drop bad samples that an interrupted run recorded after its last checkpoint. The same pairs come again."""
        for place in self._folder.glob(f"{BAD_SAMPLES}.rank*.jsonl"):
            rank = place.name.removeprefix(f"{BAD_SAMPLES}.rank").removesuffix(".jsonl")
            # There may have been more processes before than there are now.
            if int(rank) % distributed.world_size() == distributed.rank():
                kept = [line for line in read_json_lines(place) if line.get("slot", slot) < slot]
                write_text(place, "".join(json.dumps(line) + "\n" for line in kept))

    def arrived(self, loaded: Loaded, waited: float) -> None:
        """Record that a batch arrived after `waited` seconds of waiting."""
        self._waited += waited
        self._loading += loaded.seconds
        if self._ledger:
            with write_errors(self._folder / "ledger"):
                self._ledger.write(self._step, loaded.batch.ids.numpy())
        self._step += 1
        for bad in loaded.bad:
            self._bad += 1
            self._logged += 1
            if self._logged <= _LOGGED:
                more = "; further ones are in the file only" if self._logged == _LOGGED else ""
                LOG.warning("skipped, another sample takes its place: %s%s", bad.reason, more)
            place = self._folder / f"{BAD_SAMPLES}.rank{distributed.rank()}.jsonl"
            with write_errors(place), place.open("a", encoding="utf-8") as file:
                file.write(json.dumps(bad._asdict()) + "\n")

    def report(self, seconds: float) -> dict[str, float]:
        """Return metrics since the last report. This is a collective: call it on every process.

        Args:
            seconds: seconds of training since the last report.

        Raises:
            DataError: more samples are unreadable than `data.max_bad_fraction` allows.
        """
        metrics = {"data_wait": round(min(self._waited / seconds, 1.0), 4)}
        if self._steps.config.max_bad_fraction:
            metrics["bad_samples"] = self._budget()
        if not self._started:  # the start of the loader says nothing about its speed
            self._started, self._loading = True, Seconds()
        else:
            self._span = Span(self._span.seconds + seconds, self._span.waited + self._waited)
            if self._span.seconds > _LONG:
                self._judge()
        self._waited = 0.0
        return metrics

    def counts(self) -> dict[str, int]:
        """Return the bad samples of the whole run, and those of the current span with its pairs. This is a collective:
        call it on every process."""
        if self._steps.config.max_bad_fraction:
            new = distributed.sum_over_processes(self._bad, self._device)
            pairs = (self._step - self._counted) * self._steps.plan.global_batch
            self._bad, self._counted = 0, self._step
            for name, more in (("bad", new), ("span_bad", new), ("span_pairs", pairs)):
                self._counts[name] += more
        return dict(self._counts)

    def _budget(self) -> int:
        """Check the share of bad samples, and return their number so far."""
        allowed, counts = self._steps.config.max_bad_fraction, self.counts()
        bad, pairs = counts["span_bad"], counts["span_pairs"]
        whole_run = self._steps.plan.steps * self._steps.plan.global_batch
        if bad > allowed * max(pairs, min(SPAN, whole_run)):
            raise DataError(
                f"{bad} of the last {pairs} samples could not be used, more than data.max_bad_fraction {allowed:g} "
                f"allows; they are named in {self._folder}/{BAD_SAMPLES}.rank*.jsonl, and "
                "`mmrep data check --deep` finds all of them"
            )
        if pairs >= 10 * SPAN:
            self._counts |= {"span_bad": 0, "span_pairs": 0}
        return counts["bad"]

    def _judge(self) -> None:
        """Warn on the first process, from time to time, which part of loading keeps training waiting."""
        now = time.monotonic()
        slow = self._span.waited > _SLOW * self._span.seconds
        if slow and distributed.rank() == 0 and now - self._reminded > _REMIND_SECONDS:
            self._reminded = now
            LOG.warning("%s", diagnosis(self._span, self._loading, self._workers))
        self._span, self._loading = Span(), Seconds()


def diagnosis(span: Span, loading: Seconds, workers: int) -> str:
    """Return a sentence that names the part of loading that keeps training waiting.

    Args:
        span: seconds that training took, and waited.
        loading: seconds that all loader processes spent on each part.
        workers: number of loader processes; 0 means that the trainer loads batches itself.
    """
    parts = vars(loading)
    total = sum(parts.values()) or 1.0
    share, busy = min(span.waited / span.seconds, 1.0), total / (span.seconds * max(workers, 1))
    worst = "queue" if workers and busy < 0.5 else max(parts, key=lambda part: parts[part])
    shares = ", ".join(f"{part} {spent / total:.0%}" for part, spent in parts.items() if spent > 0.005 * total)
    who = f"{workers} loader processes are busy {busy:.0%} of it" if workers else "no loader processes"
    return f"training waits for data {share:.0%} of the time ({who}: {shares}); mostly {worst}: {_ADVICE[worst]}"
