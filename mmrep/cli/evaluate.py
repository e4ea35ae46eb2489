"""`mmrep eval`."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from mmrep.cli.models import ModelsAndSets, find_device, is_quiet, open_local, require_writable
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.config.checks import require
from mmrep.training.output import check_evaluation
from mmrep.training.signals import Stopped

LOG = logging.getLogger("mmrep")

_LONGEST = 120


@dataclass(frozen=True, kw_only=True)
class Options(ModelsAndSets):
    """Evaluate many models on many sets, decoding each image once: zero-shot classification, retrieval, probes,
    robustness. `accelerate launch -m mmrep eval ...` spreads the work over several processes.

    Attributes:
        task: Tasks of the sets in --data: auto, zeroshot, retrieval, linear_probe, knn, corruption, ...
        output: JSON file for the results, in place of results.json in --output_dir.
        output_dir: Folder for results.json and outcomes/. By default results/MODELS/SETS.
    """

    task: list[str] = field(default_factory=lambda: ["auto"])
    output: str | None = None
    output_dir: str | None = None


def run(options: Options, _: list[str]) -> None:
    """Evaluate, and write the results after every set.

    Raises:
        ConfigError: wrong use.
        MmrepError: unreadable data, or a model that does not fit.
        Stopped: Ctrl-C.
    """
    configs = options.read_suites([task for each in options.task for task in each.split(",")])
    require(bool(configs), "nothing to evaluate on: give --suite FILE or --data DIR")
    names = options.names()
    sets = [each for config in configs for each in config.sets]
    folder = options.output_dir or _default_folder(names, options.suite, options.data)
    output = Path(options.output) if options.output else Path(folder) / "results.json"
    option = "--output" if options.output else "--output_dir"
    check_evaluation(option, output, names, sets, options.precision)

    from mmrep import distributed
    from mmrep.evaluation.outcome_names import file_stem, model_folder
    from mmrep.evaluation.suite import evaluate_each, results_table, write_figures, write_outcomes

    device = find_device(options.device)
    groups = [(config, open_local(config.sets)) for config in configs]
    count = sum(len(sets) for _, sets in groups)
    require_writable(option, output.parent)
    cache, models, about = options.load(names, device)
    kept = cache if options.cache else None
    datasets: dict[str, dict[str, Any]] = {}
    results, quiet, begin = [], is_quiet(), time.monotonic()
    try:
        passes = (evaluate_each(models, sets, config, quiet, kept) for config, sets in groups)
        for found in chain.from_iterable(passes):
            results += found
            evalset, seconds = found[0].evalset, round(time.monotonic() - begin, 2)
            begin = time.monotonic()
            digest = {"digest": evalset.records.digest(), "n": len(evalset.records), "seconds": seconds}
            if evalset.config is not None:
                digest |= {"path": evalset.config.path, "split": evalset.config.split}
            datasets[evalset.name] = digest
            if distributed.rank() == 0:
                write_outcomes(found, output.parent)
                outcomes = [
                    f"outcomes/{model_folder(one.model)}/{file_stem(one.evalset.name, one.evalset.task, one.task)}.npz"
                    for one in results
                ]
                write_figures(results, output, about | {"datasets": datasets, "outcomes": outcomes})
            if quiet:
                LOG.info("%s: %d images, %.1f s (%d of %d sets)", evalset.name, digest["n"], seconds,
                         len(datasets), count)  # fmt: skip
    except KeyboardInterrupt as error:
        done = f"{output} has {len(datasets)} of {count} sets" if datasets else "nothing is written"
        raise Stopped(f"interrupted: {done}; the same command goes on faster, from the cache") from error
    if distributed.rank() == 0:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        say(results_table(results, width) + f"\n\nwritten: {output}")
    distributed.stop()


def _default_folder(models: Iterable[str], suites: Iterable[str], data: Iterable[str]) -> str:
    """Return the default folder of an evaluation: different models or sets have different ones."""
    sets = [Path(place.rstrip("/")).stem for place in (*suites, *data)]
    return "/".join(["results", *("+".join(names).replace("/", "_")[:_LONGEST] for names in (models, sets))])


VERB = Verb(
    Options,
    run,
    positional="model",
    lead=("model", "suite", "data", "task", "split", "output_dir", "batch_size", "precision", "cache", "device"),
    examples=(
        "mmrep eval --model runs/x --data data/imagenet_sample",
        "mmrep eval --model runs/a runs/b hf-hub:user/name --suite eval/suites/small.yaml",
    ),
)
