"""One function over many items: order, progress, and workers that are killed."""

import os
import signal

import pytest

from mmrep.config.checks import MmrepError
from mmrep.data.parallel import over


def square(number: int) -> int:
    return number * number


def die_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers: int) -> None:
    seen: list[tuple[int, int]] = []
    assert list(over(range(10), square, workers, lambda *done: seen.append(done))) == [i * i for i in range(10)]
    assert seen == [(i, 10) for i in range(1, 11)]


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(MmrepError, match=r"a worker process was killed .*; try fewer --workers"):
        list(over(range(5), die_at_two, 2))
