"""`mmrep VERB`: the command line. Torch is imported only inside a verb, after its arguments are found right."""

import argparse
import dataclasses
import difflib
import json
import logging
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mmrep import __version__
from mmrep.config.checks import ConfigError, MmrepError, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.tree import CompareConfig, TrainConfig
from mmrep.training.output import check_output
from mmrep.training.signals import Stopped

DONE, FAILED, WRONG_USE, RESUMABLE = 0, 1, 2, 75

T = TypeVar("T")

_HELP = f"""mmrep {__version__}: which pooling should turn the patch tokens of a ViT into an image embedding?

usage: mmrep VERB [options]        (mmrep VERB --help tells a verb's options)

  train     train a model             mmrep train --config configs/cifar10.yaml --optim.lr 1e-3
  compare   train and evaluate every pooling of a study, write the report
                                      mmrep compare --config configs/quickstart.yaml
  eval      zero-shot and retrieval   mmrep eval --model runs/x/final --data DIR
  report    a study's tables again    mmrep report studies/quickstart
  export    to open_clip              mmrep export runs/x/final --output_dir FOLDER
  push      to the Hugging Face Hub   mmrep push runs/x --repo-id user/name --dry-run
  data      shards                    mmrep data scenes | check | index

exit status: 0 done, 1 failed, 2 wrong use, 75 stopped by a signal and resumable
"""


class _Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--version"], ["-V"]):
        _print(f"mmrep {__version__}")
        return DONE
    if not args or args[0] in ("-h", "--help", "help"):
        _print(_HELP)
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


def _print(text: str) -> None:
    """Text on stdout, where results go; a reader that has gone away (`| head`) is no error."""
    try:
        sys.stdout.write(text.rstrip("\n") + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123  # lives until the process ends


def _set_up_logging() -> None:
    log = logging.getLogger("mmrep")
    log.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.propagate = False


# Configs: YAML file, dotted overrides, --print_config, --help


def parse_config(kind: type[T], verb: str, argv: Sequence[str]) -> T:
    """A config from a YAML file and dotted overrides.

    Raises:
        ConfigError: unknown key, wrong type, impossible value; one line.
    """
    from jsonargparse import ArgumentParser

    _read_configs(argv)
    parser = ArgumentParser(prog=f"mmrep {verb}", exit_on_error=False, description=(kind.__doc__ or "").split("\n")[0])
    parser.add_argument("--config", action="config", help="YAML file; options after it override it")
    parser.add_class_arguments(kind)
    try:
        options = parser.parse_args(fold_pool(list(argv)))
        values = vars(parser.instantiate(options))
        values.pop("config")
        return kind(**values)
    except ConfigError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_explain(error, list(parser.get_defaults().keys()))) from error


def _explain(error: Exception, valid: list[str]) -> str:
    """jsonargparse's message in the user's words: the key, what was expected, the nearest right one."""
    text = " ".join(str(getattr(error, "message", None) or error).replace("Parser key ", "").split())
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    unknown = re.search(r"Option '([^']+)' is not accepted|unrecognized arguments: --([\w.]+)", text)
    if unknown:
        key = unknown[1] or unknown[2]
        if key.startswith("study"):
            return f"unknown key {key!r}: studies are run by `mmrep compare`"
        near = [name for name in valid if name.endswith(f".{key}")] or difflib.get_close_matches(key, valid, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown key {key!r}{hint} (--help lists all)"
    return text.replace('"', "", 2) if text.startswith('"') else text


def fold_pool(argv: list[str]) -> list[str]:
    """Folds `--model.pool*` options over the YAML file's pool, in order: another name drops the old one's arguments."""
    rest: list[str] = []
    options: list[tuple[str, str]] = []
    position = 0
    while position < len(argv):
        name, equals, value = argv[position].partition("=")
        if name.startswith("--model.pool"):
            if not equals:
                position += 1
                require(position < len(argv), f"{name}: expected a value")
                value = argv[position]
            options.append((name.removeprefix("--model.pool").lstrip("."), value))
        else:
            rest.append(argv[position])
        position += 1
    if not options:
        return rest
    pool: Any = "cls"
    for content in _read_configs(argv):
        model = content.get("model") or {}
        pool = model.get("pool", pool) if isinstance(model, dict) else pool
    current = _pool_mapping("model.pool", pool)
    for name, text in options:
        value = _parse_yaml(f"--model.pool {text}", text)
        if not name:
            current = _pool_mapping("--model.pool", value)
        elif name == "name":
            current = current if current.get("name") == value else {"name": value}
        elif name.startswith("args."):
            current["args"] = dict(current.get("args") or {}, **{name.removeprefix("args."): value})
        else:
            raise ConfigError(f"--model.pool.{name}: unknown option (valid: --model.pool, .name, .args.NAME)")
    return [*rest, "--model.pool", json.dumps(current)]


def _pool_mapping(where: str, value: Any) -> dict[str, Any]:
    named = {"name": value} if isinstance(value, str) else value
    require(
        isinstance(named, dict) and bool(named.get("name")),
        f"{where}: expected a name, or {{name: ggem, args: {{groups: 12}}}}, got {value!r}",
    )
    return dict(named)


def _read_configs(argv: Sequence[str]) -> list[dict[str, Any]]:
    """The contents of the YAML files that `--config` names.

    Raises:
        ConfigError: a file that is missing, unreadable, not YAML, or no mapping.
    """
    names = [value for name, value in pairwise(argv) if name == "--config"]
    names += [option.partition("=")[2] for option in argv if option.startswith("--config=")]
    contents = []
    for name in names:
        require(Path(name).is_file(), f"--config: no such file: {name}")
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--config {name}: can't be read as UTF-8 text: {error}") from error
        content = _parse_yaml(f"--config {name}", text)
        kind = "an empty file" if content is None else type(content).__name__
        require(isinstance(content, dict), f"--config {name}: expected keys and values at the top, got {kind}")
        contents.append(content)
    return contents


def _parse_yaml(where: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(
            f"{where}: not YAML{place}: {problem}; indent with spaces, close brackets and quotes"
        ) from error


# Verbs


def _train(argv: list[str]) -> None:
    if any("study" in content for content in _read_configs(argv)):
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
        _print("\n" + terminal(results) + f"\n\nwritten: {config.output_dir}/results.json, report.md")


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
    parser = _Parser("mmrep eval", description="Zero-shot classification and image-text retrieval.")
    parser.add_argument(
        "--model", action="append", required=True, help="a run, its final/, an open_clip folder, or hf-hub:user/name"
    )
    parser.add_argument("--suite", help="YAML file with sets, batch_size, workers")
    parser.add_argument(
        "--data", action="append", default=[], help="folder of a set in CLIP_benchmark's layout; may be repeated"
    )
    parser.add_argument("--task", default="auto", help="of --data: auto, zeroshot, retrieval")
    parser.add_argument("--split", default="test", help="of --data")
    parser.add_argument("--batch_size", type=int, help="images in one forward pass")
    parser.add_argument("--workers", type=int, help="processes that read and decode")
    parser.add_argument("--device", help="default: the GPU, if there is one")
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
    given = {key: getattr(args, key) for key in ("batch_size", "workers") if getattr(args, key) is not None}
    config = EvaluationConfig(**{**vars(suite), **given, "sets": sets})
    names = _model_names(args.model)
    output = Path(args.output) if args.output else Path(args.output_dir) / "results.json"

    import torch

    from mmrep.evaluation.sets import open_set
    from mmrep.evaluation.suite import evaluate, table, write_results
    from mmrep.model.load import load

    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    opened = [open_set(each) for each in sets]
    models = {name: load(source, device, allow_pickle=args.allow_pickle) for name, source in names.items()}
    results = evaluate(models, opened, config, quiet=not sys.stderr.isatty())
    write_results(results, output, {"mmrep": __version__, "models": names})
    _print(table(results) + f"\n\nwritten: {output}")


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


def _report(argv: list[str]) -> None:
    parser = _Parser(
        "mmrep report", description="Makes a study's report.md again from its results.json, and prints the tables."
    )
    parser.add_argument("study", help="folder of a study")
    args = parser.parse_args(argv)
    from mmrep.study.report import read_results, terminal, write_report

    results = read_results(Path(args.study))
    place = write_report(Path(args.study), results)
    _print(terminal(results) + f"\n\nwritten: {place}")


def _export(argv: list[str]) -> None:
    parser = _Parser("mmrep export", description="Writes a model in another library's format.")
    parser.add_argument("model", help="a run, its final/, or hf-hub:user/name")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--format", default="open_clip", help="open_clip")
    args = parser.parse_args(argv)
    from mmrep.hub.formats import export
    from mmrep.model.load import load

    export(load(args.model), args.output_dir, args.format)
    _print(f"written: {args.output_dir}")


def _push(argv: list[str]) -> None:
    parser = _Parser("mmrep push", description="Uploads a finished run to the Hugging Face Hub, in one commit.")
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
        _print("\n".join([result.card, *lines, "", f"dry run: nothing was uploaded to {result.url}"]))
    else:
        lines += [f"       removed  {name}" for name in result.removed]
        _print("\n".join([*lines, "", f"{result.url} at commit {result.commit}"]))


def _data(argv: list[str]) -> None:
    actions = {"scenes": _data_scenes, "check": _data_check, "index": _data_index}
    if not argv or argv[0] in ("-h", "--help"):
        _print("usage: mmrep data scenes|check|index [options]\n\n"
               "  scenes   write the synthetic compositional set\n"
               "  check    read every sample, report every problem\n"
               "  index    write index files beside the shards")  # fmt: skip
        return
    if argv[0] not in actions:
        raise ConfigError(f"unknown action {argv[0]!r} (valid: {', '.join(actions)})")
    actions[argv[0]](argv[1:])


def _data_scenes(argv: list[str]) -> None:
    from tqdm import tqdm

    from mmrep.data.scenes import ScenesSpec, write_scenes

    parser = _Parser("mmrep data scenes", description="Writes a synthetic compositional set as shards.")
    parser.add_argument("--output_dir", required=True)
    for name, value in ScenesSpec().__dict__.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    args = vars(parser.parse_args(argv))
    folder = Path(args.pop("output_dir"))
    with tqdm(desc="scenes", unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        write_scenes(folder, ScenesSpec(**args), show)
    _print(f"written: {folder}")


def _shard_args(name: str, description: str, argv: list[str]) -> list[Path]:
    from mmrep.data.paths import expand_shards

    parser = _Parser(name, description=description)
    parser.add_argument("shards", nargs="+", help="tar files, paths with braces, folders")
    return expand_shards(parser.parse_args(argv).shards)


def _data_check(argv: list[str]) -> None:
    shards = _shard_args("mmrep data check", "Reads every sample of the shards and reports every problem.", argv)
    from mmrep.data.check import check_shards
    from mmrep.data.shards import DataError

    report = check_shards(shards)
    _print(report.text())
    if report.problems:
        raise DataError(f"{len(report.problems)} problems found")


def _data_index(argv: list[str]) -> None:
    shards = _shard_args("mmrep data index", "Writes an index file beside every shard.", argv)
    from mmrep.data.shards import build_index, sidecar, write_index

    for path in shards:
        index = build_index(path)
        write_index(index, sidecar(path))
        _print(f"{sidecar(path)}: {len(index)} samples")


_VERBS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "compare": _compare,
    "eval": _eval,
    "report": _report,
    "export": _export,
    "push": _push,
    "data": _data,
}
