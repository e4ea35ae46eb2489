"""`mmrep sweep`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from mmrep.cli.models import Speed, check_sets, find_device, require_free
from mmrep.cli.parsing import Verb, parse
from mmrep.cli.terminal import say
from mmrep.config.checks import require
from mmrep.config.evaluation import SetConfig
from mmrep.config.sweep import SweepConfig
from mmrep.config.tree import TrainConfig
from mmrep.training.output import RUN_CONFIG


@dataclass(frozen=True, kw_only=True)
class Options(SweepConfig, Speed):
    """Choose the exponent p of a trained model on held-out images.

    Attributes:
        model: Folder of a finished run.
        data: Folders of sets in CLIP_benchmark's layout to choose on, instead of the run's validation split.
        split: Split of the sets in --data.
        save: Folder to write the model with the best p to.
        output_dir: Folder for sweep.json. By default the run's.
        plugins: Modules that register pooling heads of your own.
    """

    model: str
    data: list[str] = field(default_factory=list)
    split: str = "test"
    save: str | None = None
    output_dir: str | None = None
    plugins: list[str] = field(default_factory=list)


def run(options: Options, _: list[str]) -> None:
    """Sweep p, and print and write the results.

    Raises:
        ConfigError: wrong use.
    """
    folder, save = Path(options.model), Path(options.save) if options.save else None
    require((folder / RUN_CONFIG).is_file(), f"{folder}: not a run: it has no {RUN_CONFIG}")
    config = parse(TrainConfig, "sweep", ["--config", str(folder / RUN_CONFIG)])
    require(
        (folder / "final" / "config.json").is_file(),
        f"{folder}: not finished, it has no final/: continue it with `mmrep train --config {folder / RUN_CONFIG} "
        "--resume auto`",
    )
    require(
        bool(options.data) or config.data.validation.fraction > 0,
        f"{folder}: trained without a validation split (data.validation.fraction 0): give --data DIR to choose on",
    )
    if save is not None:
        require_free("--save", save)
    sets = [SetConfig(path, split=options.split) for path in options.data]
    check_sets(sets)

    from mmrep.study.sweep_run import sweep_run

    asked = SweepConfig(p=options.p, pool=options.pool, negatives=options.negatives, metric=options.metric)
    device, evaluation = find_device(options.device), options.applied(config.evaluation)
    output = Path(options.output_dir or folder)
    say(sweep_run(folder, config, asked, sets, device, output, save, evaluation, not sys.stderr.isatty()))


VERB = Verb(
    Options,
    run,
    positional="model",
    lead=("model", "p", "pool", "negatives", "metric", "data", "split", "save", "output_dir", "device"),
    examples=("mmrep sweep --model runs/x --p 1 2 3 4.6 10 --save best",),
)
