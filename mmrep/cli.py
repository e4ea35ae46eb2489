"""`mmrep VERB`: the command line. Torch is imported only inside a verb, after its arguments are found right."""

import dataclasses
import logging
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from mmrep import __version__, agreement
from mmrep.config.checks import ConfigError, MmrepError
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.markup import printable
from mmrep.options import config_files, parse_config, read_configs
from mmrep.terminal import Parser, say
from mmrep.training.output import check_kind, check_output
from mmrep.training.signals import Stopped

DONE, FAILED, WRONG_USE, RESUMABLE = 0, 1, 2, 75
_OWN_MISTAKE_SECONDS = 5.0
_LONGEST = 1000
"""Characters of an error, whatever a file or an option holds."""

_HELP = f"""mmrep {__version__}: which pooling should turn the patch tokens of a ViT into an image embedding?

usage: mmrep VERB [options]        (mmrep VERB --help tells a verb's options)

  train     train a model             mmrep train --config configs/quickstart.yaml --optim.lr 1e-3
  compare   train and evaluate every pooling of a study, write the report
                                      mmrep compare --config configs/quickstart.yaml
  eval      zero-shot, retrieval, ... mmrep eval --model runs/x --suite eval/suites/small.yaml
  embed     embeddings as npy/parquet mmrep embed --model runs/x --data DIR --output_dir FOLDER
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
    _set_up_logging()
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return _run(args[0], args[1:])
    # A process that ends would fill the others' screens with C++ stack traces; what has happened is said anyway.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(args[0], args[1:])
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(verb: str, rest: list[str]) -> int:
    """Run a verb and return the exit status. Processes that have met others don't return from a failure."""
    try:
        if verb not in _VERBS:
            raise ConfigError(f"unknown verb {verb!r} (valid: {', '.join(_VERBS)})")
        _VERBS[verb](rest)
    except (MmrepError, OSError, KeyboardInterrupt, Stopped) as error:
        text, status = _outcome(error)
        return _fail(f"mmrep {verb}: {text}", status)
    except Exception as error:
        if others := _others():
            others.explain()  # a collective fails where another process has; that one says why
            traceback.print_exc()
            others.fail(
                f"mmrep {verb}: error: {type(error).__name__} on rank {others.rank}: {_one_line(error)}", FAILED
            )
        raise
    agreement.leave()
    if "torch" in sys.modules:  # else there is no group to leave, and torch need not be imported for that
        from mmrep import distributed

        distributed.stop()
    return DONE


def _others() -> "agreement.Peers | None":
    """Return the others, for a process that has failed: the launcher's SIGTERM must not end it before it says why."""
    others = agreement.peers()
    if others:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return others


def _outcome(error: BaseException) -> tuple[str, int]:
    """Return what is said of an error, and the exit status."""
    if isinstance(error, Stopped):
        return str(error), RESUMABLE
    if isinstance(error, KeyboardInterrupt):
        return "error: interrupted", FAILED
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"error: {error.filename}: {error.strerror}", FAILED
    return f"error: {_one_line(error)}", WRONG_USE if isinstance(error, ConfigError) else FAILED


def _one_line(error: object) -> str:
    line = printable(" ".join(str(error).split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"


def _fail(text: str, status: int) -> int:
    """Say how a verb has failed, once for all processes, and return the exit status.

    Processes that have met agree on the first failure, and end here. Before that, all find the same mistake as a rule,
    and the first one says it; another that is still there after a while has found one of its own.
    """
    if others := _others():
        others.fail(text, status)
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_OWN_MISTAKE_SECONDS)
        text = f"{text} (rank {rank} on {platform.node()})"
    sys.stderr.write(text + "\n")
    return status


class _Printable(logging.Formatter):
    """Messages without the control characters that names from elsewhere may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _set_up_logging() -> None:
    log = logging.getLogger("mmrep")
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    log.handlers = [handler]
    log.propagate = False


def _train(given: list[str]) -> None:
    argv = _with_output(given, "runs")
    if any("study" in content for content in read_configs(argv)):
        # A study's recipe is a training recipe: one run of it, with model.pool and seed as they stand.
        study = parse_config(CompareConfig, "train", argv)
        config = TrainConfig(**{field.name: getattr(study, field.name) for field in dataclasses.fields(TrainConfig)})
    else:
        config = parse_config(TrainConfig, "train", argv)
    _check_early(config)
    from mmrep.training.trainer import train

    train(config, _invocation("train", given, resume=True))


def _with_output(argv: list[str], folder: str) -> list[str]:
    """Return options with the verb's own default for the output: FOLDER/NAME, where NAME is that of the config's file.

    A run and a study of one config would otherwise be written to one place.
    """
    if any(word.partition("=")[0] == "--output_dir" for word in argv):
        return argv
    if any("output_dir" in content for content in read_configs(argv)):
        return argv
    files = config_files(argv)
    return ["--output_dir", f"{folder}/{Path(files[-1]).stem if files else 'run'}", *argv]


def _compare(given: list[str]) -> None:
    argv = _with_output(given, "studies")
    config = parse_config(CompareConfig, "compare", argv)
    _check_early(config)
    from mmrep import distributed
    from mmrep.study.report import terminal
    from mmrep.study.runner import compare

    results = compare(config, _invocation("compare", given))
    if distributed.rank() == 0:
        say("\n" + terminal(results) + f"\n\nwritten: {config.output_dir}/results.json, report.md")


def _check_early(config: TrainConfig) -> None:
    """Everything that can be found wrong without torch."""
    from mmrep.cli_options import check_sets
    from mmrep.data.sources import check_sources

    config.training.local_batch(int(os.environ.get("WORLD_SIZE", "1")))
    check_sources(config.data)
    check_sets(config.evaluation.sets)
    if isinstance(config, CompareConfig):
        check_kind("output_dir", Path(config.output_dir), "a study")
    else:
        check_output(config)


def _invocation(verb: str, argv: list[str], resume: bool = False) -> str:
    """Return the command that was given, as it is typed again; with `--resume auto` where it is to go on."""
    start = "accelerate launch train.py" if Path(sys.argv[0]).name == "train.py" else f"mmrep {verb}"
    words = list(argv)
    if resume:
        # A checkpoint's folder, given again, would go back to that checkpoint.
        at = next((i for i, word in enumerate(words) if word.partition("=")[0] == "--resume"), None)
        if at is not None:
            del words[at : at + (1 if "=" in words[at] else 2)]
        words += ["--resume", "auto"]
    return shlex.join([*start.split(), *words])


def _eval(argv: list[str]) -> None:
    from mmrep.cli_eval import run_eval

    run_eval(argv)


def _embed(argv: list[str]) -> None:
    from mmrep.cli_eval import run_embed

    run_embed(argv)


def _sweep(argv: list[str]) -> None:
    from mmrep.cli_eval import run_sweep

    run_sweep(argv)


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
    "embed": _embed,
    "sweep": _sweep,
    "report": _report,
    "export": _export,
    "push": _push,
    "data": _data,
}
