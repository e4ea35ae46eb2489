"""`mmrep compare`."""

from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.cli.train import check_early, invocation, with_output
from mmrep.config.tree import CompareConfig


def run(options: CompareConfig, argv: list[str]) -> None:
    """Train and evaluate every pooling of a study, and write the report."""
    check_early(options)
    from mmrep import distributed
    from mmrep.study.report import terminal
    from mmrep.study.runner import compare

    results = compare(options, invocation("compare", argv))
    if distributed.rank() == 0:
        say("\n" + terminal(results) + f"\n\nwritten: {options.output_dir}/results.json, report.md")


def prepare(argv: list[str]) -> list[str]:
    """Return the words with this verb's default output folder."""
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
        "study.primary",
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
