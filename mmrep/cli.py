"""`mmrep VERB`: the command line. Torch is imported only inside a verb, after its arguments are found right."""

import argparse
import dataclasses
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmrep import __version__
from mmrep.config.checks import ConfigError, MmrepError, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.sweep import GEM_LIKE, SweepConfig, parse_exponents
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.options import parse_config, read_configs
from mmrep.terminal import Parser, say
from mmrep.training.output import CONFIG, check_output
from mmrep.training.signals import Stopped

DONE, FAILED, WRONG_USE, RESUMABLE = 0, 1, 2, 75

_HELP = f"""mmrep {__version__}: which pooling should turn the patch tokens of a ViT into an image embedding?

usage: mmrep VERB [options]        (mmrep VERB --help tells a verb's options)

  train     train a model             mmrep train --config configs/quickstart.yaml --optim.lr 1e-3
  compare   train and evaluate every pooling of a study, write the report
                                      mmrep compare --config configs/quickstart.yaml
  eval      zero-shot and retrieval   mmrep eval --model runs/x/final --data DIR
  sweep     the pooling's exponent p  mmrep sweep runs/x --p 1,2,3,4.6,10
  report    a study's tables again    mmrep report studies/quickstart
  export    open_clip, mmcap_light    mmrep export runs/x/final --output_dir FOLDER
  push      to the Hugging Face Hub   mmrep push runs/x --repo-id user/name --dry-run
  data      shards                    mmrep data scenes | pack | check | index | ledger

exit status: 0 done, 1 failed, 2 wrong use, 75 stopped by a signal and resumable
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--version"], ["-V"]):
        say(f"mmrep {__version__}")
        return DONE
    if not args or args[0] in ("-h", "--help", "help"):
        say(_HELP)
        return DONE if args else WRONG_USE
    verb, rest = args[0], args[1:]
    _set_up_logging()
    try:
        if verb not in _VERBS:
            raise ConfigError(f"unknown verb {verb!r} (valid: {', '.join(_VERBS)})")
        _VERBS[verb](rest)
    except ConfigError as error:
        return _fail(verb, error, WRONG_USE)
    except (MmrepError, OSError) as error:
        return _fail(verb, error, FAILED)
    except KeyboardInterrupt:
        return _fail(verb, "interrupted", FAILED)
    except Stopped as stop:
        _say(f"mmrep {verb}: {stop}")
        return RESUMABLE
    return DONE


def _fail(verb: str, error: object, status: int) -> int:
    _say(f"mmrep {verb}: error: {' '.join(str(error).split())}")
    return status


def _say(message: str) -> None:
    """A line on stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(message + "\n")


def _set_up_logging() -> None:
    log = logging.getLogger("mmrep")
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.propagate = False


def _train(argv: list[str]) -> None:
    if any("study" in content for content in read_configs(argv)):
        # A study's recipe is a training recipe: one run of it, with model.pool and seed as they stand.
        study = parse_config(CompareConfig, "train", argv)
        config = TrainConfig(**{field.name: getattr(study, field.name) for field in dataclasses.fields(TrainConfig)})
    else:
        config = parse_config(TrainConfig, "train", argv)
    _check_early(config)
    from mmrep.training.trainer import train

    train(config, _invocation("train", argv) + ("" if "--resume" in argv else " --resume auto"))


def _compare(argv: list[str]) -> None:
    config = parse_config(CompareConfig, "compare", argv)
    _check_early(config)
    from mmrep import distributed
    from mmrep.study.report import terminal
    from mmrep.study.runner import compare

    results = compare(config, _invocation("compare", argv))
    if distributed.rank() == 0:
        say("\n" + terminal(results) + f"\n\nwritten: {config.output_dir}/results.json, report.md")


def _check_early(config: TrainConfig) -> None:
    """Everything that can be found wrong without torch."""
    from mmrep.data.sources import check_sources

    config.training.local_batch(int(os.environ.get("WORLD_SIZE", "1")))
    check_sources(config.data)
    _check_sets(config.evaluation.sets)
    if not isinstance(config, CompareConfig):
        check_output(config)


def _invocation(verb: str, argv: list[str]) -> str:
    """The command that was given, as it is typed again."""
    start = "accelerate launch train.py" if Path(sys.argv[0]).name == "train.py" else f"mmrep {verb}"
    return shlex.join([*start.split(), *argv])


def _eval(argv: list[str]) -> None:
    parser = Parser("mmrep eval", description="Zero-shot classification and image-text retrieval.")
    parser.add_argument(
        "--model", action="append", required=True, help="a run, its final/, an open_clip folder, or hf-hub:user/name"
    )
    parser.add_argument("--suite", help="YAML file with sets, batch_size, workers")
    parser.add_argument(
        "--data", action="append", default=[], help="folder of a set in CLIP_benchmark's layout; may be repeated"
    )
    parser.add_argument("--task", default="auto", help="of --data: auto, zeroshot, retrieval")
    parser.add_argument("--split", default="test", help="of --data")
    _add_speed(parser)
    parser.add_argument("--output", help="JSON file (default: OUTPUT_DIR/results.json)")
    parser.add_argument("--output_dir", default="results", help="folder for results.json and outcomes/")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .pt weights of open_clip folders with weights_only=True"
    )
    args = parser.parse_args(argv)
    suite = parse_config(EvaluationConfig, "eval", ["--config", args.suite]) if args.suite else EvaluationConfig()
    sets = [*suite.sets, *(SetConfig(path, task=args.task, split=args.split) for path in args.data)]
    require(bool(sets), "nothing to evaluate on: give --suite FILE or --data DIR")
    _check_sets(sets)
    config = _with_speed(suite, args, sets=sets)
    names = _model_names(args.model)
    output = Path(args.output) if args.output else Path(args.output_dir) / "results.json"

    from mmrep.evaluation.sets import open_set
    from mmrep.evaluation.suite import evaluate, table, write_results
    from mmrep.model.load import load

    device = _device(args.device)
    opened = [open_set(each) for each in sets]
    models = {name: load(source, device, allow_pickle=args.allow_pickle) for name, source in names.items()}
    results = evaluate(models, opened, config, quiet=not sys.stderr.isatty())
    write_results(results, output, {"mmrep": __version__, "models": names})
    say(table(results) + f"\n\nwritten: {output}")


def _add_speed(parser: Parser) -> None:
    parser.add_argument("--batch_size", type=int, help="images in one forward pass")
    parser.add_argument("--workers", type=int, help="processes that read and decode")
    parser.add_argument("--device", help="default: the GPU, if there is one")


def _with_speed(config: EvaluationConfig, args: argparse.Namespace, **fields: Any) -> EvaluationConfig:
    """A config with what `_add_speed` lets a user say."""
    given = {key: getattr(args, key) for key in ("batch_size", "workers") if getattr(args, key) is not None}
    return dataclasses.replace(config, **given, **fields)


def _device(asked: str | None) -> str:
    """The device asked for, found to be there; by default the GPU, if there is one."""
    import torch

    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def _model_names(sources: list[str]) -> dict[str, str]:
    """Short names for models in results: the folder's (of the run, for a final/), made different where two are
    alike."""
    names: dict[str, str] = {}
    for source in sources:
        path = Path(source.removeprefix("hf-hub:"))
        name = path.resolve().parent.name if path.name == "final" else path.name or str(path)
        names[name if name not in names else source] = source
    require(len(names) == len(sources), "--model: the same model twice")
    return names


def _check_sets(sets: list[SetConfig]) -> None:
    from mmrep.evaluation.sets import check_set

    for each in sets:
        check_set(each)
    names = [each.name or Path(each.path).resolve().name for each in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two evaluation sets are called {twice!r}: give one of them a name")


def _sweep(argv: list[str]) -> None:
    parser = Parser("mmrep sweep", description="Chooses the exponent p of a trained model on held-out images.")
    parser.add_argument("run", help="folder of a finished run")
    default = ",".join(f"{p:g}" for p in SweepConfig().p)
    parser.add_argument("--p", default=default, help=f"exponents, each for all channels (default: {default})")
    parser.add_argument(
        "--pool", help=f"{', '.join(GEM_LIKE)}: in place of the trained head (default: only if it has no p)"
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
    _add_speed(parser)
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
    free = save is None or not save.exists() or (save.is_dir() and not any(save.iterdir()))
    require(free, f"--save {save}: expected a new folder or an empty one")
    sets = [SetConfig(path, split=args.split) for path in args.data]
    _check_sets(sets)

    from mmrep.training.sweep_run import sweep_run

    device, evaluation = _device(args.device), _with_speed(config.evaluation, args)
    quiet = not sys.stderr.isatty()
    say(sweep_run(run, config, asked, sets, device, Path(args.output_dir or run), save, evaluation, quiet))


def _report(argv: list[str]) -> None:
    parser = Parser(
        "mmrep report", description="Makes a study's report.md again from its results.json, and prints the tables."
    )
    parser.add_argument("study", help="folder of a study")
    args = parser.parse_args(argv)
    from mmrep.study.report import read_results, terminal, write_report

    results = read_results(Path(args.study))
    place = write_report(Path(args.study), results)
    say(terminal(results) + f"\n\nwritten: {place}")


def _export(argv: list[str]) -> None:
    parser = Parser("mmrep export", description="Writes a model in another form.")
    parser.add_argument("model", help="a run, its final/, or hf-hub:user/name")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--format",
        default="open_clip",
        help="open_clip, or mmcap_light: the mean token of a trained mcap or mmcap alone, for mmrep itself",
    )
    args = parser.parse_args(argv)
    from mmrep.hub.formats import export
    from mmrep.model.load import load

    export(load(args.model), args.output_dir, args.format)
    say(f"written: {args.output_dir}")


def _push(argv: list[str]) -> None:
    parser = Parser("mmrep push", description="Uploads a finished run to the Hugging Face Hub, in one commit.")
    parser.add_argument("run", help="a run's folder, or a model's")
    parser.add_argument("--repo-id", required=True, help="user/name")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--license", help="of the weights, as the Hub names it (apache-2.0, mit, cc-by-4.0, ...)")
    parser.add_argument("--open_clip", action="store_true", help="with the files that open_clip itself loads")
    parser.add_argument("--dry-run", action="store_true", help="list the files and show the card; no network")
    args = parser.parse_args(argv)
    from mmrep.hub.push import push

    with tempfile.TemporaryDirectory() as folder:
        extra = None
        if args.open_clip:
            from mmrep.hub.formats import export
            from mmrep.model.load import load

            extra = {path.name: path for path in export(load(args.run), Path(folder) / "open_clip").iterdir()}
        result = push(args.run, args.repo_id, args.private, args.dry_run, license=args.license, extra=extra)
    lines = [f"{size:>14,}  {name}" for name, size in result.files.items()]
    if args.dry_run:
        say("\n".join([result.card, *lines, "", f"dry run: nothing was uploaded to {result.url}"]))
    else:
        lines += [f"       removed  {name}" for name in result.removed]
        say("\n".join([*lines, "", f"{result.url} at commit {result.commit}"]))


def _data(argv: list[str]) -> None:
    from mmrep.cli_data import run_action

    run_action(argv)


_VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "compare": _compare,
    "eval": _eval,
    "sweep": _sweep,
    "report": _report,
    "export": _export,
    "push": _push,
    "data": _data,
}
