"""The classes of images that have several: labels that no class has, and classes without images."""

import logging
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
import torch

from mmrep.data.tar import DataError
from mmrep.evaluation.sources.records import Records
from mmrep.evaluation.tasks.zeroshot import targets_of, warn_of_absent


@dataclass(frozen=True)
class Several(Records):
    """Records of which only the labels are read."""

    samples: list[list[int]]

    def labels(self, position: int) -> list[int]:
        return self.samples[position]

    def key(self, position: int) -> str:
        return f"image {position}"

    def unused(self, *_: Any) -> NoReturn:
        raise AssertionError("only labels are read")

    image = digest = files = unused


def test_targets_of_labels() -> None:
    assert targets_of(Several([[2, 0], [], [1, 1]]), 3, "here").tolist() == [
        [True, False, True],
        [False, False, False],
        [False, True, False],
    ]
    with pytest.raises(DataError, match="here: sample 'image 1': label 3, but there are 3 class names"):
        targets_of(Several([[0], [3]]), 3, "here")


def test_absent_classes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    targets = torch.tensor([[1, 0, 0], [0, 0, 1]]).bool()
    with caplog.at_level(logging.WARNING, "mmrep"):
        warn_of_absent(targets, ["a", "b", "c"], "here")
    assert "here: 1 of 3 classes have no image" in caplog.text and "(b)" in caplog.text
    with pytest.raises(DataError, match="here: no image has any class"):
        warn_of_absent(torch.zeros(4, 3, dtype=torch.bool), ["a", "b", "c"], "here")
