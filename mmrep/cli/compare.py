"""`mmrep compare`."""

from typing import Any

from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.cli.train import check_early, invocation, with_output
from mmrep.config.checks import MmrepError, require
from mmrep.config.tree import CompareConfig
from mmrep.training.signals import Stopped


def run(options: CompareConfig, argv: list[str]) -> None:
    """Train and evaluate every pooling of a study, and write the report."""
    check_early(options)
    again = invocation("compare", argv)
    if options.dry_run:
        from mmrep import distributed
        from mmrep.study.dry_run import dry_run
        from mmrep.training.build import with_precision

        device = distributed.start()
        say(dry_run(with_precision(options, device), device))
        return
    try:
        from mmrep import distributed
        from mmrep.study.report import terminal
        from mmrep.study.runner import compare
    except KeyboardInterrupt as interrupt:
        raise Stopped(f"stopped before the first step; continue with:\n  {again}") from interrupt
    results = compare(options, again)
    if distributed.rank() == 0 and not options.join:
        say("\n" + terminal(results) + f"\n\nwritten: {options.output_dir}/report.html, report.md, results.csv")
    raise_failures(results)


def raise_failures(results: dict[str, Any]) -> None:
    """Raise RunsFailed if runs of a study failed, with the message of the first."""
    if failed := results["failed"]:
        first = failed[0]
        names = f"{len(failed)} runs" if len(failed) > 1 else "a run"
        raise RunsFailed(f"{names} failed, first {first['pool']} with seed {first['seed']}: {first['message']}")


class RunsFailed(MmrepError):
    """Runs of a study failed, and the others are finished. Exit status 1."""


def prepare(argv: list[str]) -> list[str]:
    """Return the words with this verb's default output folder.

    Raises:
        ConfigError: an option that the study sets for each run.
    """
    for word in argv:
        name = word.removeprefix("--").partition("=")[0]
        require(name != "seed", "--seed: a study trains with every seed of --study.seeds")
        one_pool = name == "model.pool" or name.startswith("model.pool.")
        require(not one_pool, f"--{name}: a study trains every head of --study.pools")
    return with_output(argv, "studies")


VERB = Verb(
    CompareConfig,
    run,
    lead=(
        "config",
        "output_dir",
        "study.pools",
        "study.seeds",
        "study.baseline",
        "study.primary.metric",
        "workers",
        "dry_run",
        "data.train",
        "evaluation.sets",
        "training.steps",
        "training.global_batch",
    ),
    examples=(
        "mmrep compare --config configs/quickstart.yaml",
        "mmrep compare --config configs/cifar10.yaml --study.pools cls avg ggem --study.seeds 0 1 2",
    ),
    prepare=prepare,
)
