"""Output of all verbs: results on stdout, progress on stderr."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmrep.markup import plain_ascii, printable


def say(text: str) -> None:
    """Print text on stdout, where results go. A reader that has gone away (`| head`) is no error."""
    text = printable(text.rstrip("\n")) + "\n"
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = plain_ascii(text)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # lives until the process ends


@contextmanager
def progress(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with rate and time left on a terminal. Yields the function to call with (done, total)."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=unit, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
