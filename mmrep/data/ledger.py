"""The ledger: the sample of every pair of a run, which proves its order afterwards."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.config.checks import ConfigError
from mmrep.data.files import read_regular
from mmrep.data.loader import Steps
from mmrep.data.tar import DataError

FOLDER = "ledger"
_PLAN = "plan.json"
_MOST_BYTES = 64 << 20
_ROW = 3
"""Numbers of a pair: its slot, the sample that the order scheduled, the sample that was used."""


class Ledger:
    """One process's part of the ledger, appended step by step.

    Args:
        run: folder of the run.
        steps: the batches of the process.
        rank: rank of the process.
    """

    def __init__(self, run: Path, steps: Steps, rank: int) -> None:
        self._steps = steps
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            sources = steps.sources
            plan = {"starts": sources.starts, "sizes": steps.order.sizes, "global_batch": steps.plan.global_batch}
            (folder / _PLAN).write_text(json.dumps(plan) + "\n", encoding="utf-8")
        self._place = folder / f"rank_{rank}.bin"
        with self._place.open("ab") as file:
            # A kill may have cut a row in two; the resumed run writes it again.
            file.truncate(file.tell() // (8 * _ROW) * (8 * _ROW))

    def write(self, step: int, used: NDArray[np.int64]) -> None:
        """Append the samples of a step's pairs: the scheduled ones, and those used."""
        steps = self._steps
        first = step * steps.plan.global_batch + steps.offset
        group, position = steps.order.slots(first, steps.local)
        scheduled = np.array(steps.sources.starts)[group] + position
        rows = np.stack([np.arange(first, first + steps.local), scheduled, used], axis=1)
        with self._place.open("ab") as file:
            file.write(rows.astype("<i8").tobytes())


class LedgerReport(NamedTuple):
    """The result of `check_ledger`.

    Attributes:
        pairs: number of pairs of the run, each counted once.
        repeated: number of pairs that were trained on again after a resume.
        replaced: number of pairs whose sample was replaced by another.
        epochs: number of whole epochs of each group of sources.
        problems: a line each; empty if each sample was there once in every epoch.
    """

    pairs: int
    repeated: int
    replaced: int
    epochs: list[int]
    problems: list[str]

    def text(self) -> str:
        """Return the report as lines for the terminal."""
        epochs = ", ".join(map(str, self.epochs))
        found = f"{len(self.problems)} problems" if self.problems else "each sample exactly once in every epoch"
        counts = f"{self.pairs} pairs, {self.repeated} repeated after a resume, {self.replaced} replaced"
        return "\n".join([*self.problems, f"{counts}; whole epochs: {epochs}; {found}"])


def _read_plan(place: Path) -> dict[str, Any]:
    """Read the plan of a ledger; raise DataError if it is damaged."""
    try:
        plan = json.loads(read_regular(place, _MOST_BYTES))
    except OSError as error:
        raise DataError(f"{place}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON: {str(error)[:200]}") from error
    plan = plan if isinstance(plan, dict) else {}
    for name, least in (("starts", 0), ("sizes", 1)):
        values = plan.get(name)
        if not isinstance(values, list) or not values or not all(_is_count(value, least) for value in values):
            raise DataError(f"{place}: {name}: expected a list of integers from {least} up")
    if len(plan["starts"]) != len(plan["sizes"]):
        raise DataError(f"{place}: starts and sizes: expected as many of one as of the other")
    if not _is_count(plan.get("global_batch"), 1):
        raise DataError(f"{place}: global_batch: expected an integer from 1 up")
    return plan


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**53


def check_ledger(run: Path) -> LedgerReport:
    """Check the order of a run from its ledger: no slot missing or ambiguous, each sample once an epoch.

    Raises:
        ConfigError: the run has no ledger.
        DataError: its plan is damaged.
    """
    folder = run / FOLDER
    files = [file for file in sorted(folder.glob("rank_*.bin")) if file.is_file()]
    if not files or not (folder / _PLAN).is_file():
        raise ConfigError(f"{folder}: no ledger; a run with --data.ledger true writes one")
    plan = _read_plan(folder / _PLAN)
    parts = [np.fromfile(file, dtype="<i8") for file in files]
    rows = np.concatenate([part[: len(part) // _ROW * _ROW].reshape(-1, _ROW) for part in parts])
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    again = np.zeros(len(rows), dtype=bool)
    again[1:] = rows[1:, 0] == rows[:-1, 0]
    differing = np.flatnonzero(again[1:] & (rows[1:] != rows[:-1]).any(1)) + 1
    problems = [f"slot {rows[row, 0]}: another sample after a resume" for row in differing.tolist()]
    once = rows[~again]
    present = once[:, 0]
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        problems.append(f"slot {gaps[0]} is missing (and maybe later ones): {present[-1] + 1 - len(present)} in all")
    elif len(present) % plan["global_batch"]:
        step, pairs = divmod(len(present), plan["global_batch"])
        problems.append(f"step {step} has {pairs} of {plan['global_batch']} pairs: stopped within it, or cut")
    # After a missing slot, the epoch of the later ones is unknown.
    known = once[: gaps[0]] if len(gaps) else once
    epochs = []
    stray = np.ones(len(once), dtype=bool)
    for start, size in zip(plan["starts"], plan["sizes"], strict=True):
        stray &= (once[:, 1] < start) | (once[:, 1] >= start + size)
        scheduled = known[(known[:, 1] >= start) & (known[:, 1] < start + size), 1]
        epochs.append(len(scheduled) // size)
        for epoch in range(-(-len(scheduled) // size)):
            drawn = scheduled[epoch * size : (epoch + 1) * size]
            twice = len(drawn) - len(np.unique(drawn))
            if twice:
                problems.append(f"samples from number {start} on, epoch {epoch}: {twice} drawn more than once")
    if stray.any():
        problems.append(f"{int(stray.sum())} pairs of samples that the sources do not have")
    return LedgerReport(len(once), int(again.sum()), int((once[:, 1] != once[:, 2]).sum()), epochs, problems)
