"""Exponents: of a model, and as a run has logged them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from mmrep.data.tar import DataError
from mmrep.diagnostics.exponents import Exponents, current_exponents, exponents_over_training
from mmrep.model.dual_encoder import DualEncoder


def write(folder: Path, *lines: str) -> Path:
    file = folder / "metrics.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def line(step: int, low: float) -> str:
    values = {"exponent_min": low, "exponent_median": low + 1, "exponent_max": low + 2}
    return json.dumps({"step": step, "loss": 1.0, **values})


def test_lines_with_exponents_are_read_and_a_cut_one_is_not(tmp_path: Path) -> None:
    evaluation = json.dumps({"step": 10, "evaluation": {"x": 1.0}})
    file = write(tmp_path, line(10, 3.0), evaluation, line(20, 2.5), line(30, 2.0)[:-4])
    expected = Exponents([10, 20], [3.0, 2.5], [4.0, 3.5], [5.0, 4.5])
    assert exponents_over_training(file) == expected
    assert exponents_over_training(tmp_path) == expected


def test_a_run_without_exponents(tmp_path: Path) -> None:
    write(tmp_path, json.dumps({"step": 1, "loss": 2.0}), "")
    assert exponents_over_training(tmp_path) == Exponents([], [], [], [])


def test_damage_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"metrics\.jsonl: no such file"):
        exponents_over_training(tmp_path / "metrics.jsonl")
    write(tmp_path, line(1, 3.0), "{oops", "")
    with caplog.at_level(logging.WARNING, "mmrep"):
        assert exponents_over_training(tmp_path).steps == [1]
    assert "metrics.jsonl: 1 damaged lines are left out" in caplog.text


def test_of_a_model(tiny: Callable[..., DualEncoder]) -> None:
    assert current_exponents(tiny({"name": "ggem", "args": {"groups": 4, "p": 2.0}})) == pytest.approx([2.0] * 4)
    assert current_exponents(tiny("avg")) == []
