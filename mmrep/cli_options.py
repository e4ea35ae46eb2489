"""What the verbs that take models and sets have in common: their options, and what becomes of these."""

import argparse
import dataclasses
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrep import __version__
from mmrep.config.checks import ConfigError, one_of, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.suites import merge_suites
from mmrep.options import read_suite
from mmrep.terminal import Parser

if TYPE_CHECKING:
    from mmrep.evaluation.embedding.cache import EmbeddingCache
    from mmrep.evaluation.sets import EvalSet
    from mmrep.model.dual_encoder import DualEncoder

PRECISIONS = ("fp32", "bf16")
DATA_FORMATS = ("webdataset", "folder")
"""Formats that need no more than a path; the others' sets stand in a suite."""


def check_sets(sets: list[SetConfig]) -> None:
    """What can be found wrong with sets before anything heavy is imported.

    Raises:
        ConfigError: see `mmrep.evaluation.sources.check.check_set`; two sets that would write to one file.
    """
    from mmrep.evaluation.outcome_names import check_set_names
    from mmrep.evaluation.sources.check import check_set

    for each in sets:
        check_set(each)
    check_set_names([(each.result_name, each.tasks) for each in sets])


def add_models(parser: Parser) -> None:
    parser.add_argument(
        "--model", nargs="+", action="extend", required=True,
        help="a run, its final/, an open_clip folder, or hf-hub:user/name; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .pt weights of open_clip folders with weights_only=True"
    )
    parser.add_argument("--precision", help="fp32 (default) or bf16 (autocast)")


def add_sets(parser: Parser) -> None:
    parser.add_argument(
        "--suite", nargs="+", action="extend", default=[],
        help="YAML files with sets, and batch_size and tasks' options for these",
    )  # fmt: skip
    parser.add_argument("--data", nargs="+", action="extend", default=[], help="folders or addresses of sets")
    parser.add_argument("--split", default="test", help="of --data (default: test)")
    parser.add_argument(
        "--data_format", default="webdataset",
        help="of --data: webdataset (default) or folder; sets of annotation files stand in a suite",
    )  # fmt: skip


def add_cache(parser: Parser) -> None:
    parser.add_argument(
        "--no_cache", action="store_true",
        help="neither read nor keep embeddings in $MMREP_CACHE/embeddings (at most $MMREP_EMBEDDINGS_GB, default 20)",
    )  # fmt: skip


def add_speed(parser: Parser) -> None:
    parser.add_argument("--batch_size", type=int, help="images in one forward pass")
    parser.add_argument("--workers", type=int, help="processes that read and decode")
    parser.add_argument("--device", help="default: the GPU, if there is one; cpu or cuda for several processes")


def with_speed(config: EvaluationConfig, args: argparse.Namespace, **fields: Any) -> EvaluationConfig:
    """A config with what `add_speed` lets a user say."""
    given = {key: getattr(args, key) for key in ("batch_size", "workers") if getattr(args, key) is not None}
    return dataclasses.replace(config, **given, **fields)


def read_suites(args: argparse.Namespace, tasks: list[str], joined: bool = False) -> list[EvaluationConfig]:
    """All of --suite and --data, a config for all that have the same options; `add_speed` overrides these.

    Args:
        args: of the verb.
        tasks: of --data.
        joined: take the first one's options for all, where tasks' options don't matter: one config, each set once.

    Raises:
        ConfigError: wrong use, a suite that is none; see `merge_suites` and `check_sets`.
    """
    if args.precision is not None:
        one_of("--precision", args.precision, PRECISIONS)
    suites = [(file, read_suite(file)) for file in args.suite]
    if args.data:
        suites.append(("--data", EvaluationConfig(sets=_given_sets(args, tasks))))
    if joined:
        suites = [(file, dataclasses.replace(suites[0][1], sets=suite.sets)) for file, suite in suites]
    merged = merge_suites([(file, with_speed(suite, args, cache=not args.no_cache)) for file, suite in suites])
    check_sets([each for config in merged for each in config.sets])
    return merged


def _given_sets(args: argparse.Namespace, tasks: list[str]) -> list[SetConfig]:
    """The sets of --data."""
    one_of("--data_format", args.data_format, DATA_FORMATS)
    for path in args.data:
        place = Path(path).expanduser()
        require(not place.is_file(), f"--data {path}: is a file: list it in a suite (--suite) with its `format`")
        packed = args.data_format != "webdataset" or not place.is_dir() or any(place.glob("*/nshards.txt"))
        require(
            packed or (place / args.split / "nshards.txt").is_file(),
            f"--data {path}: no {args.split}/nshards.txt, so not in CLIP_benchmark's layout; "
            "a folder of class folders? give --data_format folder, with --split . where they lie in the folder itself",
        )
    return [SetConfig(path, task=tasks, split=args.split, format=args.data_format) for path in args.data]


def open_local(sets: list[SetConfig]) -> list["EvalSet | SetConfig"]:
    """Local sets, opened before any work is done, so that what is wrong with one is found early; others as they are."""
    from mmrep.data.remote import is_remote
    from mmrep.evaluation.sets import open_set

    return [each if is_remote(each.path) else open_set(each) for each in sets]


def load_models(
    args: argparse.Namespace, names: dict[str, str], device: str
) -> tuple["EmbeddingCache", dict[str, "DualEncoder"], dict[str, Any]]:
    """The models, and what results' files say of them."""
    import torch

    from mmrep.distributed import check_precision
    from mmrep.evaluation.embedding.cache import EmbeddingCache, model_digest
    from mmrep.evaluation.embedding.sharding import shard_for_evaluation
    from mmrep.model.load import load

    cache, models, about = EmbeddingCache(), {}, {}
    for name, source in names.items():
        model = load(source, device, allow_pickle=args.allow_pickle)
        model.precision = args.precision or model.precision
        check_precision(model.precision, "--precision")
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            shard_for_evaluation(model)
        models[name] = model
        about[name] = {"source": source, "digest": model_digest(cache, model), "precision": model.precision}
    packages = ("torch", "timm", "open_clip_torch")
    versions = {"mmrep": __version__} | {package: version(package) for package in packages}
    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return cache, models, {"models": about, "versions": versions, "device": kind}


def is_quiet() -> bool:
    return not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"


def find_device(asked: str | None) -> str:
    """The device asked for, found to be there; by default the GPU, if there is one. Of several processes, its own."""
    import torch

    from mmrep import distributed

    if distributed.launched() > 1:
        require(
            asked in (None, "cpu", "cuda"),
            f"--device {asked}: each of several processes has a device of its own: give cpu or cuda",
        )
        return str(distributed.start(cpu=asked == "cpu"))
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def model_names(sources: list[str]) -> dict[str, str]:
    """Short names for models in results: the folder's (of the run, for a final/), made different where two are
    alike.

    Raises:
        ConfigError: a model twice, two names that are one as a folder's.
    """
    from mmrep.evaluation.outcome_names import check_model_names

    names: dict[str, str] = {}
    for source in sources:
        path = Path(source.removeprefix("hf-hub:"))
        name = path.resolve().parent.name if path.name == "final" else path.name or str(path)
        names[name if name not in names else source] = source
    require(len(names) == len(sources), "--model: the same model twice")
    check_model_names(names)
    return names


def require_writable(option: str, folder: Path) -> None:
    """Makes a folder, and tries whether a file can be written there; the first of several processes does.

    Raises:
        ConfigError: it can't.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {folder}: can't write there: {error.strerror}") from error


def require_free(option: str, folder: Path) -> None:
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{option} {folder}: expected a new folder or an empty one")
