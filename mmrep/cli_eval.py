"""`mmrep eval`, `embed`, `sweep`: what is done with models that are trained."""

import logging
import shutil
import sys
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from mmrep import __version__
from mmrep.cli_options import (
    add_cache,
    add_models,
    add_sets,
    add_speed,
    check_sets,
    find_device,
    is_quiet,
    load_models,
    model_names,
    open_local,
    read_suites,
    require_free,
    require_writable,
    with_speed,
)  # fmt: skip
from mmrep.config.checks import one_of, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.sweep import SweepConfig, gem_like, parse_exponents
from mmrep.config.tree import TrainConfig
from mmrep.options import parse_config
from mmrep.terminal import Parser, say
from mmrep.training.output import CONFIG, check_evaluation
from mmrep.training.signals import Stopped

LOG = logging.getLogger("mmrep")

_LONGEST = 120


def run_eval(argv: list[str]) -> None:
    """`mmrep eval`; results are written after every set.

    Raises:
        ConfigError: wrong use.
        MmrepError: bad data, a model that does not fit.
        Stopped: Ctrl-C.
    """
    parser = Parser(
        "mmrep eval",
        description="Zero-shot classification, retrieval, probes, robustness: many models on many sets, each image "
        "decoded once. `accelerate launch -m mmrep eval ...` spreads the work over several processes.",
    )
    add_models(parser)
    add_sets(parser)
    parser.add_argument("--task", default="auto", help="of --data: auto, or one or several of zeroshot, retrieval, "
                        "linear_probe, knn, corruption, ..., comma-separated")  # fmt: skip
    add_speed(parser)
    add_cache(parser)
    parser.add_argument("--output", help="JSON file (default: OUTPUT_DIR/results.json)")
    parser.add_argument(
        "--output_dir", help="folder for results.json and outcomes/ (default: results/MODELS/SETS, by their names)"
    )
    args = parser.parse_args(argv)
    configs = read_suites(args, args.task.split(","))
    require(bool(configs), "nothing to evaluate on: give --suite FILE or --data DIR")
    names = model_names(args.model)
    sets = [each for config in configs for each in config.sets]
    folder = args.output_dir or _default_folder(names, args.suite, args.data)
    output = Path(args.output) if args.output else Path(folder) / "results.json"
    check_evaluation("--output" if args.output else "--output_dir", output, names, sets)

    from mmrep import distributed
    from mmrep.evaluation.outcome_names import file_stem, model_folder
    from mmrep.evaluation.suite import evaluate_each, table, write_figures, write_outcomes

    device = find_device(args.device)
    groups = [(config, open_local(config.sets)) for config in configs]
    count = sum(len(sets) for _, sets in groups)
    require_writable("--output" if args.output else "--output_dir", output.parent)
    cache, models, about = load_models(args, names, device)
    kept = None if args.no_cache else cache
    datasets: dict[str, dict[str, Any]] = {}
    results, quiet, begin = [], is_quiet(), time.monotonic()
    try:
        passes = (evaluate_each(models, sets, config, quiet, kept) for config, sets in groups)
        for found in chain.from_iterable(passes):
            results += found
            evalset, seconds = found[0].evalset, round(time.monotonic() - begin, 2)
            begin = time.monotonic()
            digest = {"digest": evalset.records.digest(), "n": len(evalset.records), "seconds": seconds}
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
        say(table(results, width) + f"\n\nwritten: {output}")
    distributed.stop()


def _default_folder(models: Iterable[str], suites: Iterable[str], data: Iterable[str]) -> str:
    """Return where an evaluation is written by default: a folder that another one does not share."""
    sets = [Path(place.rstrip("/")).stem for place in (*suites, *data)]
    return "/".join(["results", *("+".join(names).replace("/", "_")[:_LONGEST] for names in (models, sets))])


def run_embed(argv: list[str]) -> None:
    """`mmrep embed`.

    Raises:
        ConfigError: wrong use.
        MmrepError: bad data, a model that does not fit.
    """
    parser = Parser(
        "mmrep embed", description="Writes embeddings of unit length: OUTPUT_DIR/MODEL/DATASET/images.npy, texts.npy."
    )
    add_models(parser)
    add_sets(parser)
    parser.add_argument("--texts", action="append", default=[], help="file with a text a line; may be repeated")
    parser.add_argument("--output_dir", required=True, help="a new folder or an empty one")
    parser.add_argument("--format", default="npy", help="npy (default; ids in a .jsonl beside) or parquet")
    parser.add_argument("--dtype", default="float32", help="float32 (default) or float16")
    add_speed(parser)
    add_cache(parser)
    args = parser.parse_args(argv)
    one_of("--format", args.format, ("npy", "parquet"))
    one_of("--dtype", args.dtype, ("float32", "float16"))
    configs = read_suites(args, ["auto"], joined=True)
    config = configs[0] if configs else with_speed(EvaluationConfig(), args)
    require(bool(config.sets or args.texts), "nothing to embed: give --data DIR, --suite FILE or --texts FILE")
    names, output = model_names(args.model), Path(args.output_dir)
    require_free("--output_dir", output)
    from mmrep.data.paths import read_lines

    texts = {Path(file).stem: read_lines(file, "--texts") for file in args.texts}
    taken = [*texts, *(each.result_name for each in config.sets)]
    require(len(taken) == len(args.texts) + len(config.sets), "--texts: two files of one name")
    require(len(set(taken)) == len(taken), "--texts: a file has the name of a set: rename it")

    from mmrep import distributed
    from mmrep.evaluation.context import Context
    from mmrep.evaluation.embedding.cached import embed_texts_cached, require_finite
    from mmrep.evaluation.embedding.tokens import warn_of_cut
    from mmrep.evaluation.embedding.written import Form, check_form, write_set, write_texts
    from mmrep.evaluation.sets import open_set

    form = Form(args.format, args.dtype)
    check_form(form)
    device = find_device(args.device)
    sets = open_local(config.sets)
    require_writable("--output_dir", output)
    cache, models, about = load_models(args, names, device)
    facts = {name: {"mmrep": __version__, "model": {"name": name, **about["models"][name]}} for name in models}
    used = None if args.no_cache else cache
    written = []
    for each in sets:
        evalset = open_set(each) if isinstance(each, SetConfig) else each
        context = Context(models, evalset, config, is_quiet(), used)
        written += write_set(output, context, facts, form)
    for stem, lines in texts.items():
        for name, model in models.items():
            warn_of_cut(lines, model.tokenizer, stem, [name])
            rows = embed_texts_cached(model, lines, config.text_batch_size, used)
            require_finite(rows, name, f"embeddings of {stem}")
            if distributed.rank() == 0:
                written.append(write_texts(output, name, stem, lines, rows, facts[name], form))
    if distributed.rank() == 0:
        say("\n".join(f"written: {place}" for place in written))
    distributed.stop()


def run_sweep(argv: list[str]) -> None:
    """`mmrep sweep`.

    Raises:
        ConfigError: wrong use.
    """
    parser = Parser("mmrep sweep", description="Chooses the exponent p of a trained model on held-out images.")
    parser.add_argument("run", help="folder of a finished run")
    default = ",".join(f"{p:g}" for p in SweepConfig().p)
    parser.add_argument("--p", default=default, help=f"exponents, each for all channels (default: {default})")
    parser.add_argument(
        "--pool", help=f"{', '.join(gem_like())}: in place of the trained head (default: only if it has no p)"
    )
    parser.add_argument("--negatives", help="clamp, shift, signed: of the head put in")
    parser.add_argument("--metric", help="to choose by (default: acc1, or image_retrieval_recall@1)")
    parser.add_argument(
        "--data", action="append", default=[],
        help="folder of a set in CLIP_benchmark's layout to choose on, not the validation split; may be repeated",
    )  # fmt: skip
    parser.add_argument("--split", default="test", help="of --data")
    parser.add_argument("--save", metavar="FOLDER", help="write the model with the best p there")
    parser.add_argument("--output_dir", help="folder for sweep.json (default: the run's)")
    add_speed(parser)
    args = parser.parse_args(argv)
    asked = SweepConfig(parse_exponents(args.p), args.pool, args.negatives, args.metric)
    run, save = Path(args.run), Path(args.save) if args.save else None
    require((run / CONFIG).is_file(), f"{run}: not a run: it has no {CONFIG}")
    config = parse_config(TrainConfig, "sweep", ["--config", str(run / CONFIG)])
    require(
        (run / "final" / "config.json").is_file(),
        f"{run}: not finished, it has no final/: continue it with `mmrep train --config {run / CONFIG} --resume auto`",
    )
    require(
        bool(args.data) or config.data.validation.fraction > 0,
        f"{run}: trained without a validation split (data.validation.fraction 0): give --data DIR to choose on",
    )
    if save is not None:
        require_free("--save", save)
    sets = [SetConfig(path, split=args.split) for path in args.data]
    check_sets(sets)

    from mmrep.training.sweep_run import sweep_run

    device, evaluation = find_device(args.device), with_speed(config.evaluation, args)
    quiet = not sys.stderr.isatty()
    say(sweep_run(run, config, asked, sets, device, Path(args.output_dir or run), save, evaluation, quiet))
