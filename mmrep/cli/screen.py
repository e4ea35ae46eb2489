"""`mmrep screen`."""

import dataclasses

from mmrep.cli import compare
from mmrep.cli.terminal import say
from mmrep.cli.train import check_early, invocation
from mmrep.config.tree import ScreenConfig
from mmrep.training.signals import Stopped


def run(options: ScreenConfig, argv: list[str]) -> None:
    """Compare every pooling of a study on one frozen trunk, and write the report."""
    check_early(options)
    again = invocation("screen", argv)
    try:
        from mmrep.study.report import terminal
        from mmrep.study.runner import compare_on_one_trunk
    except KeyboardInterrupt as interrupt:
        raise Stopped(f"stopped before the first step; continue with:\n  {again}") from interrupt
    results = compare_on_one_trunk(options, again)
    say("\n" + terminal(results) + f"\n\nwritten: {options.output_dir}/report.html, report.md, results.csv")
    compare.raise_failures(results)


_UNUSED = ("config", "workers", "dry_run")

VERB = dataclasses.replace(
    compare.VERB,
    options=ScreenConfig,
    run=run,
    lead=("config", "trunk", "study.screen_steps", *(name for name in compare.VERB.lead if name not in _UNUSED)),
    examples=(
        "mmrep screen --config configs/quickstart.yaml",
        "mmrep screen --config configs/cifar10.yaml --trunk runs/cifar10 --study.pools cls avg ggem --study.seeds 0 1",
    ),
)
