"""The exponents of GeM-like heads, at the end of training and along the way."""

from pathlib import Path
from typing import NamedTuple

from mmrep.data.tar import DataError
from mmrep.files import read_json_lines
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling.gem import exponents_of

_KEYS = ("exponent_min", "exponent_median", "exponent_max")


class Exponents(NamedTuple):
    """Exponents over training; empty lists for a head without any.

    Attributes:
        steps: steps at which they were logged.
        min: the smallest exponent at each step.
        median: their median at each step.
        max: the largest exponent at each step.
    """

    steps: list[int]
    min: list[float]
    median: list[float]
    max: list[float]


def exponents_over_training(path: str | Path) -> Exponents:
    """Return the exponents that a run has logged. Damaged lines are left out, with a warning.

    Args:
        path: the run's folder, or its metrics.jsonl.

    Raises:
        DataError: the file does not exist.
    """
    file = Path(path) / "metrics.jsonl" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected the metrics of a run")
    records = [record for record in read_json_lines(file) if all(key in record for key in _KEYS)]
    return Exponents([record["step"] for record in records], *([record[key] for record in records] for key in _KEYS))


def current_exponents(model: DualEncoder) -> list[float]:
    """Return the exponents of the model's head, group after group; none for a head without exponents."""
    found = exponents_of(model.image.pool)
    return [] if found is None else found.tolist()
