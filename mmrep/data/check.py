"""`mmrep data check`: every sample of the shards read once, every problem named."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mmrep.data.captions import class_label, text_lines
from mmrep.data.decode import read_image
from mmrep.data.shards import DataError, ShardIndex, build_index


class Report(NamedTuple):
    """What was found.

    Attributes:
        shards: shards read.
        samples: samples read in those that could be indexed.
        problems: a line each.
    """

    shards: int
    samples: int
    problems: list[str]

    def text(self) -> str:
        """As lines for the terminal."""
        return "\n".join(
            [*self.problems, f"{self.shards} shards, {self.samples} samples, {len(self.problems)} problems"]
        )


def check_shards(paths: list[Path]) -> Report:
    """Indexes every shard anew and reads every image, text and label."""
    problems: list[str] = []
    samples = 0
    for path in paths:
        try:
            index = build_index(path)
        except DataError as error:
            problems.append(str(error))
            continue
        except OSError as error:
            problems.append(f"{path}: {error.strerror}")
            continue
        samples += len(index)
        for row in range(len(index)):
            problems += _sample_problems(index, row)
    return Report(len(paths), samples, problems)


def _sample_problems(index: ShardIndex, row: int) -> list[str]:
    readers: list[Callable[[], object]] = [lambda: read_image(index, row)]
    if "txt" in index.members:
        readers.append(lambda: text_lines(index, row, "txt"))
    if "cls" in index.members:
        readers.append(lambda: class_label(index, row, sys.maxsize))  # how many classes there are, no shard says
    problems = []
    for read in readers:
        try:
            read()
        except DataError as error:
            problems.append(str(error))
    return problems
