"""`mmrep report`."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.files import DamagedFile, read_json
from mmrep.training.output import RESULTS, STUDY


@dataclass(frozen=True)
class Options:
    """Make a study's report from the runs that are finished, whoever trained them, and print it.

    Attributes:
        study: Folder of a study, as `mmrep compare` writes it.
    """

    study: str


def run(options: Options, _: list[str]) -> None:
    """Collect what is finished, and write and print the report. A folder without runs has its results.json."""
    from mmrep.study.collect import collect, read_study, write_study
    from mmrep.study.report import read_results, terminal

    folder = Path(options.study)
    config = read_study(folder)
    command = f"mmrep compare --config {folder}/{STUDY} --output_dir {folder}"
    with suppress(FileNotFoundError, DamagedFile):
        command = read_json(folder / RESULTS).get("command", command)
    results = dict(read_results(folder)) if config is None else collect(config, command)
    written = write_study(folder, results)
    say(terminal(results) + f"\n\nwritten: {', '.join(map(str, written))}")


VERB = Verb(
    Options,
    run,
    positional="study",
    examples=("mmrep report studies/quickstart",),
)
