"""The sweep of a finished run on the images that it held out."""

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from mmrep import __version__
from mmrep.config.checks import one_of, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.pooling import PoolConfig
from mmrep.config.sweep import SweepConfig
from mmrep.config.tree import TrainConfig
from mmrep.data.sources import Sources
from mmrep.evaluation.scoring.ranking import RECALL_AT
from mmrep.evaluation.sets import EvalSet, open_set, validation_sets
from mmrep.files import DamagedFile, read_json
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import WEIGHTS, load, save_model
from mmrep.model.trunk import stage_blocks
from mmrep.study.sweep import State, check_sweepable, sweep
from mmrep.study.sweep_report import FILE, best_state, remarks, sweep_table, write_sweep
from mmrep.training.build import with_precision
from mmrep.training.data import index_progress
from mmrep.training.output import SUMMARY

LOG = logging.getLogger("mmrep")


def sweep_run(
    run: Path,
    config: TrainConfig,
    asked: SweepConfig,
    given: Sequence[SetConfig] = (),
    device: str | torch.device = "cpu",
    output: Path | None = None,
    save: Path | None = None,
    evaluation: EvaluationConfig | None = None,
    quiet: bool = True,
) -> str:
    """Sweep the exponent of a finished run, and write sweep.json.

    Args:
        run: its folder.
        config: its own.
        asked: the exponents, and the head if not the model's own.
        given: sets to choose on instead of the run's validation split.
        device: where to.
        output: folder of sweep.json; None: the run's.
        save: folder for the model in its best state; None: not written.
        evaluation: batch sizes and workers; None: those of the run.
        quiet: show no progress bars.

    Returns:
        The table and what has to be known to read it.

    Raises:
        ConfigError: nothing to choose on, nothing to sweep, an unknown metric, a set with other tasks.
        DataError: a shard or sample that can't be read.
    """
    config = with_precision(config, torch.device(device))
    place = (output or run) / FILE
    question = {
        "run": str(run.resolve()),
        "p": sorted(asked.p),
        "pool": asked.pool,
        "negatives": asked.negatives,
        "metric": asked.metric,
        "data": [f"{each.path} {each.split}" for each in given],
    }
    sets = [open_set(each) for each in given] if given else held_out_sets(config, run)
    check_sweepable(sets)
    metric = primary_metric(sets, asked.metric)
    check_sweep(place, question)
    model = load(run / "final", device)
    model.precision = config.training.resolved()
    swept = sweep(model, sets, asked, evaluation or config.evaluation, quiet)
    count = sum(len(evalset.records) for evalset in sets)
    held_out = f"{count:,} images held out of training (data.validation)"
    chosen_on = f"{count:,} images of {', '.join(each.path for each in given)}" if given else held_out
    tests = tests_among(given, config)
    about = {
        "mmrep": __version__,
        "run": str(run),
        "asked": question,
        "trained_pool": model.config.pooling.label,
        "chosen_on": chosen_on,
        "test_sets_read": tests,
        "model_digest": hashlib.sha256((run / "final" / WEIGHTS).read_bytes()).hexdigest(),
        "config_digest": hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest(),
    }
    write_sweep(swept, metric, place, about)
    below = remarks(swept, metric, model.config.pooling.name, chosen_on, tests)
    lines = [sweep_table(swept), "", *below, "", f"written: {place}"]
    if save is not None:
        state = swept.states[best_state(swept, metric)]
        save_state(model, state, swept.put_in, save)
        lines.append(f"saved: {save} ({state.name})")
    return "\n".join(lines)


def check_sweep(place: Path, question: Mapping[str, object]) -> None:
    """Check that a sweep overwrites no sweep that answers another question.

    Raises:
        ConfigError: the file holds another sweep.
    """
    try:
        before = read_json(place).get("asked")
    except FileNotFoundError:
        return
    except DamagedFile as error:
        LOG.warning("%s; it is written anew", error)
        return
    other = next((key for key in question if not isinstance(before, dict) or before.get(key) != question[key]), None)
    require(
        other is None, f"{place}: holds a sweep with another {other}, which would be lost: give another --output_dir"
    )


def held_out_sets(config: TrainConfig, run: Path) -> list[EvalSet]:
    """Return the validation split of a run, as in its training.

    Raises:
        ConfigError: it has none.
        DataError: a shard or sample that can't be read.
    """
    sources = Sources(config.data, index_progress())
    sets = validation_sets(sources, config.data.validation, config.data.max_bad_fraction > 0)
    require(
        bool(sets), f"data.validation.fraction {config.data.validation.fraction}: no sample is held out; give --data"
    )
    summary = run / SUMMARY
    then = read_json(summary).get("data") if summary.is_file() else None
    if then not in (None, sources.describe()):
        LOG.warning("the shards are not those that %s was trained on: it may have seen what is held out now", run)
    return sets


def tests_among(given: Sequence[SetConfig], config: TrainConfig) -> list[str]:
    """Return the paths of the given sets that are test sets of the run."""
    tests = {(Path(test.path).resolve(), test.split) for test in config.evaluation.sets}
    return [each.path for each in given if (Path(each.path).resolve(), each.split) in tests]


def primary_metric(sets: Sequence[EvalSet], asked: str | None) -> str:
    """Return the metric that the best state is chosen by, as `METRIC` or `SET/METRIC`.

    Raises:
        ConfigError: no set has the metric asked for.
    """
    found = [f"{evalset.name}/{metric}" for evalset in sets for metric in _metrics(evalset)]
    valid = list(dict.fromkeys([*(name.rpartition("/")[2] for name in found), *found]))
    if asked is None:
        return "acc1" if "acc1" in valid else "image_retrieval_recall@1"
    one_of("--metric", asked, valid)
    return asked


def _metrics(evalset: EvalSet) -> list[str]:
    if evalset.task == "zeroshot":
        return ["acc1", "mean_per_class_recall", *(["acc5"] if len(evalset.classnames) >= 5 else [])]
    return [f"{way}_retrieval_recall@{k}" for k in RECALL_AT for way in ("image", "text")]


def save_state(model: DualEncoder, state: State, put_in: PoolConfig | None, folder: Path) -> None:
    """Write the model with the head of a state to a folder that `mmrep.load` reads."""
    image = model.image
    shared = (model.text, model.tokenizer, image.trunk, image.norm, image.projection)
    other = copy.deepcopy(model, {id(part): part for part in shared})
    other.image.pool = state.head
    if state.p is not None and put_in is not None:
        other.config = dataclasses.replace(
            model.config,
            pool={"name": put_in.name, "args": put_in.args},
            pool_init="fresh",
            pool_base=None,
            weights=None,
        )
        other.image.stage_blocks = stage_blocks(len(image.trunk.blocks), state.head.num_stages)
        other.image.auxiliary_projections = nn.ModuleList()
    save_model(other, folder)
