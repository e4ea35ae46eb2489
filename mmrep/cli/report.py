"""`mmrep report`."""

from dataclasses import dataclass
from pathlib import Path

from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say


@dataclass(frozen=True)
class Options:
    """Make a study's report.md again from its results.json, and print its tables.

    Attributes:
        study: Folder of a study, as `mmrep compare` writes it.
    """

    study: str


def run(options: Options, _: list[str]) -> None:
    """Write and print the report."""
    from mmrep.study.report import read_results, terminal, write_report

    results = read_results(Path(options.study))
    place = write_report(Path(options.study), results)
    say(terminal(results) + f"\n\nwritten: {place}")


VERB = Verb(
    Options,
    run,
    positional="study",
    examples=("mmrep report studies/quickstart",),
)
