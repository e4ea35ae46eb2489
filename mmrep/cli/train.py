"""`mmrep train`, and with it `train.py`."""

import dataclasses
import os
import shlex
import sys
from pathlib import Path

from mmrep.cli.models import check_sets
from mmrep.cli.parsing import Verb, config_files, read_configs
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.training.output import check_kind, check_output
from mmrep.training.signals import Stopped


def run(options: TrainConfig, argv: list[str]) -> None:
    """Train a model. Of a study's config, this is one run with `model.pool` and `seed` as they stand."""
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: getattr(options, name) for name in fields})
    check_early(config)
    again = invocation("train", argv, resume=True)
    try:
        from mmrep.training.trainer import train
    except KeyboardInterrupt as interrupt:
        raise Stopped(f"stopped before the first step; continue with:\n  {again}") from interrupt
    train(config, again)


def prepare(argv: list[str]) -> list[str]:
    """Return the words with this verb's default output folder."""
    return with_output(argv, "runs")


def with_output(argv: list[str], folder: str) -> list[str]:
    """Return the words with `--output_dir FOLDER/NAME`, where NAME is the config file's, unless a folder is given.

    Runs and studies have different folders, so that a run and a study of one config do not share one.
    """
    if any(word.partition("=")[0] in ("--output_dir", "--output-dir") for word in argv):
        return argv
    if any("output_dir" in content for content in read_configs(argv)):
        return argv
    files = config_files(argv)
    return [*argv, "--output_dir", f"{folder}/{Path(files[-1]).stem if files else 'run'}"]


def check_early(config: TrainConfig) -> None:
    """Check everything that can be found wrong without torch.

    Raises:
        ConfigError: impossible batch sizes, a missing shard or set, an output folder that holds something else.
    """
    from mmrep.data.sources import check_sources

    config.training.local_batch(int(os.environ.get("WORLD_SIZE", "1")))
    check_sources(config.data)
    check_sets(config.evaluation.sets)
    if isinstance(config, CompareConfig):
        check_kind("output_dir", Path(config.output_dir), "a study")
    else:
        check_output(config)


def invocation(verb: str, argv: list[str], resume: bool = False) -> str:
    """Return the command as the user would type it again.

    Args:
        verb: name of the verb.
        argv: the words after it.
        resume: add `--resume auto`, in place of any other `--resume`. A checkpoint's folder given again would go back
            to that checkpoint.
    """
    start = "accelerate launch train.py" if Path(sys.argv[0]).name == "train.py" else f"mmrep {verb}"
    words = list(argv)
    if resume:
        at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--resume"), None)
        if at is not None:
            del words[at : at + (1 if "=" in words[at] else 2)]
        words += ["--resume", "auto"]
    return shlex.join([*start.split(), *words])


VERB = Verb(
    TrainConfig,
    run,
    lead=(
        "config",
        "output_dir",
        "model.pool",
        "model.name",
        "data.train",
        "training.steps",
        "training.global_batch",
        "optim.lr",
        "training.precision",
        "resume",
    ),
    examples=(
        "mmrep train --config configs/quickstart.yaml --model.pool ggem --optim.lr 1e-3",
        "accelerate launch train.py --config configs/cifar10.yaml      # the same on every GPU of the machine",
    ),
    prepare=prepare,
    study=CompareConfig,
)
