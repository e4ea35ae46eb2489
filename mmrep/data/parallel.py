"""One function over many items, in several processes."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mmrep.config.checks import MmrepError

Item = TypeVar("Item")
Result = TypeVar("Result")


def over(
    items: Sequence[Item],
    function: Callable[[Item], Result],
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Result]:
    """Yield the function's results in the order of the items.

    Args:
        items: its arguments.
        function: a function that can be pickled.
        workers: number of processes; 1: no other process.
        progress: called with (items done, items).

    Raises:
        MmrepError: a worker was killed.
    """
    if workers <= 1 or len(items) <= 1:
        yield from _counted(map(function, items), len(items), progress)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(items)), context, _end_on_ctrl_c) as pool:
        try:
            yield from _counted(pool.map(function, items), len(items), progress)
        except BrokenProcessPool as error:
            raise MmrepError("a worker process was killed (out of memory?); try fewer --workers") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _counted(results: Iterator[Result], total: int, progress: Callable[[int, int], None] | None) -> Iterator[Result]:
    for done, result in enumerate(results, start=1):
        if progress:
            progress(done, total)
        yield result


def _end_on_ctrl_c() -> None:
    # Ctrl-C reaches the whole process group: workers end at once, and leave the message to the parent.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
