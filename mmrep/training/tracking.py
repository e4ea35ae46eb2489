"""The output of a run: metrics.jsonl, and a progress bar on a terminal or plain lines elsewhere."""

import json
import logging
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mmrep.evaluation.metrics import shown
from mmrep.files import read_json_lines, write_errors, write_text

LOG = logging.getLogger("mmrep")


class Tracker:
    """Writes metrics and shows progress on the first process. On all others it does neither.

    Args:
        folder: folder of the run.
        first: number of steps done before. Lines of an interrupted run after it are dropped.
        steps: number of steps of the whole run.
        global_batch: pairs in one step.
        samples: number of training samples, for the epoch.
        active: whether this is the first process.
        label: text before the bar.
    """

    def __init__(
        self, folder: Path, first: int, steps: int, global_batch: int, samples: int, active: bool, label: str
    ) -> None:
        self.active = active
        self.global_batch = global_batch
        self.samples = samples
        self.steps = steps
        self.label = label
        self.rates: list[float] = []
        self._path = folder / "metrics.jsonl"
        self._since, self._from = time.perf_counter(), first
        self._paused = 0.0
        if not active:
            return
        kept = [line for line in read_json_lines(self._path) if line.get("step", first + 1) <= first]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        with write_errors(self._path):
            self._file = self._path.open("a", encoding="utf-8")
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=first, disable=not terminal, dynamic_ncols=True,
            bar_format="{remaining} left, {desc}{n_fmt}/{total_fmt} {bar}",
        )  # fmt: skip
        self._bar.set_description_str(f"{label}: ")

    def advance(self) -> None:
        """Move the bar by one step."""
        if self.active:
            self._bar.update()

    def elapsed(self) -> float:
        """Return the seconds of training since the last line of metrics."""
        return max(time.perf_counter() - self._since - self._paused, 1e-9)

    def log(self, step: int, **metrics: float | list[float]) -> None:
        """Write a line of metrics after `step` steps, with time, samples seen, epoch, and the rate since the last."""
        now, seconds = time.perf_counter(), self.elapsed()
        rate = (step - self._from) * self.global_batch / seconds
        self.rates.append(rate)
        self._since, self._from, self._paused = now, step, 0.0
        if not self.active:
            return
        self._write({**self._at(step), **metrics, "pairs_per_s": round(rate, 2)})
        if self._bar.disable:
            left = (self.steps - step) * self.global_batch / rate
            LOG.info(
                "%s: step %d/%d  loss %.4f  %.0f pairs/s  %s left",
                self.label, step, self.steps, metrics["loss"], rate, _clock(left),
            )  # fmt: skip
        else:
            self._bar.set_description_str(f"{self.label}: loss {metrics['loss']:.3f} {rate:.0f} pairs/s ")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Write a line of evaluation metrics."""
        if self.active:
            self._write({**self._at(step), "evaluation": metrics})
            text = "  ".join(f"{name} {shown(name, value, 1)}" for name, value in metrics.items())
            self.say(f"{self.label}: step {step}: {text}")

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self.active:
            if self._bar.disable:
                LOG.info("%s", message)
            else:
                self._bar.write(message, file=sys.stderr)

    def paused(self, seconds: float) -> None:
        """Leave time that was not spent on steps (evaluation, checkpoints) out of the rate."""
        self._paused += seconds

    def close(self) -> None:
        """Close bar and file."""
        if self.active:
            self._bar.close()
            with suppress(OSError):  # a full disk was reported when the line was written
                self._file.close()

    def _at(self, step: int) -> dict[str, Any]:
        seen = step * self.global_batch
        return {"step": step, "time": round(time.time(), 3), "samples": seen, "epoch": round(seen / self.samples, 4)}

    def _write(self, line: dict[str, Any]) -> None:
        with write_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
