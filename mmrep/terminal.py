"""What every verb says and hears on a terminal: arguments, results, progress."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from mmrep.config.checks import ConfigError
from mmrep.markup import printable


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(message)


def say(text: str) -> None:
    """Text on stdout, where results go; a reader that has gone away (`| head`) is no error."""
    try:
        sys.stdout.write(printable(text.rstrip("\n")) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # lives until the process ends


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left, on a terminal; gives the function that is told (done, total)."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
