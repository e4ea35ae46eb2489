"""The exponents of GeM-like heads: where training has brought them, and the way there."""

import json
from pathlib import Path
from typing import NamedTuple

from mmrep.data.tar import DataError
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling.gem import exponents_of

_KEYS = ("exponent_min", "exponent_median", "exponent_max")


class Exponents(NamedTuple):
    """Exponents over training; empty lists for a head without any.

    Attributes:
        steps: at which they were logged.
        min: the smallest one at each step.
        median: their median.
        max: the largest.
    """

    steps: list[int]
    min: list[float]
    median: list[float]
    max: list[float]


def exponents_over_training(path: str | Path) -> Exponents:
    """What a run has logged of its exponents.

    Args:
        path: the run's folder, or its metrics.jsonl.

    Raises:
        DataError: no such file, or a line that is not JSON (a last one cut off by a crash is left out).
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; expected the metrics of a run") from error
    found = Exponents([], [], [], [])
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error}); was it edited?") from error
        if all(key in record for key in _KEYS):
            found.steps.append(record["step"])
            for values, key in zip(found[1:], _KEYS, strict=True):
                values.append(record[key])
    return found


def current_exponents(model: DualEncoder) -> list[float]:
    """The exponents of the model's head, group after group; empty for a head without any."""
    found = exponents_of(model.image.pool)
    return [] if found is None else found.tolist()
