"""The command line `mmrep VERB`: one module for each verb, each verb a dataclass.

Torch is imported inside a verb only, after its options have been checked.
"""

import importlib
import io
import logging
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mmrep import __version__, agreement
from mmrep.cli.terminal import say
from mmrep.config.checks import ConfigError, MmrepError, hint, one_of, require
from mmrep.markup import printable
from mmrep.training.signals import Stopped

if TYPE_CHECKING:
    from mmrep.cli.parsing import Verb

DONE, FAILED, WRONG_USE, RESUMABLE = 0, 1, 2, 75
_OWN_MISTAKE_SECONDS = 5.0
_LONGEST = 1000
"""Characters of an error, whatever a file or an option holds."""


class _Entry(NamedTuple):
    """A verb in the overview: where its `Verb` is in `mmrep.cli`, its summary, and an example."""

    place: str
    summary: str
    example: str


VERBS = {
    "train": _Entry("train:VERB", "train a model", "mmrep train --config configs/quickstart.yaml --optim.lr 1e-3"),
    "compare": _Entry(
        "compare:VERB", "train, evaluate and compare poolings", "mmrep compare --config configs/quickstart.yaml"
    ),
    "screen": _Entry("screen:VERB", "compare poolings on one frozen trunk", "mmrep screen --config FILE --trunk RUN"),
    "report": _Entry("report:VERB", "make a study's tables again", "mmrep report studies/quickstart"),
    "eval": _Entry(
        "evaluate:VERB", "zero-shot, retrieval, probes", "mmrep eval --model runs/x --suite eval/suites/small.yaml"
    ),
    "diff": _Entry("diff:VERB", "who is right where two models differ", "mmrep diff runs/a runs/b --data DIR"),
    "explore": _Entry("explore:VERB", "search with each pooling in a browser", "mmrep explore studies/quickstart"),
    "embed": _Entry("embed:VERB", "write embeddings", "mmrep embed --model runs/x --data DIR --output_dir FOLDER"),
    "sweep": _Entry("sweep:VERB", "choose the exponent p", "mmrep sweep --model runs/x --p 1 2 3 4.6 10"),
    "export": _Entry("export:VERB", "write for other libraries", "mmrep export --model runs/x --output_dir FOLDER"),
    "push": _Entry(
        "push:VERB", "upload to the Hugging Face Hub", "mmrep push --model runs/x --repo_id user/name --dry_run"
    ),
    "pools": _Entry("pools:VERB", "list pooling heads", "mmrep pools ggem"),
    "data scenes": _Entry("data:SCENES", "write the synthetic set", "mmrep data scenes --output_dir data/scenes"),
    "data pack": _Entry("pack:FORMATS", "pack images into shards", "mmrep data pack coco --help"),
    "data check": _Entry("data:CHECK", "read every sample", "mmrep data check DIR --deep"),
    "data index": _Entry("data:INDEX", "index shards", "mmrep data index DIR --catalog all.npz"),
    "data ledger": _Entry("data:LEDGER", "prove a run's order", "mmrep data ledger runs/x"),
}


def _overview() -> str:
    return "\n".join(
        [
            f"mmrep {__version__}: which pooling should turn the patch tokens of a ViT into an image embedding?",
            "",
            "usage: mmrep VERB [--option value ...]        (mmrep VERB --help lists a verb's options)",
            "",
            _lines(""),
            "",
            "exit status: 0 done, 1 failed, 2 wrong use, 75 stopped by a signal and resumable",
        ]
    )


def _lines(prefix: str) -> str:
    found = {name: entry for name, entry in VERBS.items() if name.startswith(prefix)}
    return "\n".join(f"  {name:<12} {entry.summary:<38} {entry.example}" for name, entry in found.items())


def find_verb(name: str) -> "Verb":
    """Import and return a verb.

    Raises:
        ConfigError: there is no such verb.
    """
    if name not in VERBS:
        names = list(dict.fromkeys(each.partition(" ")[0] for each in VERBS))
        raise ConfigError(f"unknown verb {name!r}{hint(name, names)} (valid: {', '.join(names)})")
    module, _, attribute = VERBS[name].place.partition(":")
    return getattr(importlib.import_module(f"mmrep.cli.{module}"), attribute)


def _run_verb(words: list[str]) -> None:
    """Parse the words of a command into its verb's dataclass, and run it. `--help` prints the help instead."""
    name, argv = words[0], words[1:]
    if name == "data":
        actions = [each.partition(" ")[2] for each in VERBS if each.startswith("data ")]
        if not argv or argv[0] in ("-h", "--help"):
            say("usage: mmrep data ACTION [--option value ...]\n\n" + _lines("data "))
            return
        one_of("action", argv[0], actions)
        name, argv = f"data {argv[0]}", argv[1:]
    if name == "data pack":
        from mmrep.cli.help import summary
        from mmrep.cli.pack import FORMATS

        require(bool(argv), f"expected a FORMAT: {', '.join(FORMATS)}")
        if argv[0] in ("-h", "--help"):
            lines = [f"  {each:<13} {summary(found.options)}" for each, found in FORMATS.items()]
            say("usage: mmrep data pack FORMAT [--option value ...]\n\n" + "\n".join(lines))
            return
        one_of("format", argv[0], FORMATS)
        verb, name, argv = FORMATS[argv[0]], f"data pack {argv[0]}", argv[1:]
    else:
        verb = find_verb(name)
    if {"-h", "--help"} & set(argv):
        from mmrep.cli.help import verb_help

        say(verb_help(name, verb))
        return
    from mmrep.cli.parsing import parse

    verb.run(parse(verb.kind(argv), name, verb.prepare(argv), verb.positional), argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--version"], ["-V"]):
        say(f"mmrep {__version__}")
        return DONE
    if not args or args[0] in ("-h", "--help", "help"):
        say(_overview())
        return DONE if args else WRONG_USE
    _set_up_logging()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # SIGTERM ends a verb as Ctrl-C does. A thread cannot set this.
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main_thread else None
    # When one process ends, torch fills the screens of all others with C++ stack traces. The reason is printed anyway.
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        return _run(args)
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)


def _run(words: list[str]) -> int:
    """Run a verb and return the exit status. Processes that have met others do not return from a failure."""
    verb = words[0]
    try:
        _run_verb(words)
    except (MmrepError, OSError, KeyboardInterrupt, Stopped) as error:
        text, status = _outcome(error)
        return _fail(f"mmrep {verb}: {text}", status)
    except Exception as error:
        if others := _others():
            others.explain()  # a collective fails here because another process has failed; that one gives the reason
            traceback.print_exc()
            others.fail(
                f"mmrep {verb}: error: {type(error).__name__} on rank {others.rank}: {_one_line(error)}", FAILED
            )
        raise
    agreement.leave()
    if "torch" in sys.modules:  # without torch there is no process group to leave
        from mmrep import distributed

        distributed.stop()
    return DONE


def _others() -> "agreement.Peers | None":
    """Return the other processes to one that has failed. It ignores the launcher's SIGTERM until it has said why."""
    others = agreement.peers()
    if others:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return others


def _outcome(error: BaseException) -> tuple[str, int]:
    """Return the message of an error, and the exit status."""
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
    """Print how a verb has failed, once for all processes, and return the exit status.

    Processes that have met agree on the first failure and end here. Before they have met, all usually find the same
    mistake, so rank 0 prints it. A rank that still exists some seconds later has found a mistake of its own.
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
    """A formatter that spells out control characters, which names from elsewhere may hold."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _set_up_logging() -> None:
    log = logging.getLogger("mmrep")
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable())
    log.handlers = [handler]
    log.propagate = False
