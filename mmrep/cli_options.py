"""What the verbs that take models and sets have in common: their options, and what becomes of these."""

import argparse
import dataclasses
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrep import __version__
from mmrep.config.checks import ConfigError, one_of, require
from mmrep.config.evaluation import FORMATS, EvaluationConfig, SetConfig
from mmrep.config.suites import merge_suites
from mmrep.options import parse_config
from mmrep.terminal import Parser

if TYPE_CHECKING:
    from mmrep.evaluation.embedding.cache import EmbeddingCache
    from mmrep.evaluation.sets import EvalSet
    from mmrep.model.dual_encoder import DualEncoder

PRECISIONS = ("fp32", "bf16")


def check_sets(sets: list[SetConfig]) -> None:
    """What can be found wrong with sets before anything heavy is imported.

    Raises:
        ConfigError: see `mmrep.evaluation.sources.check.check_set`; two sets of one name.
    """
    from mmrep.evaluation.sources.check import check_set

    for each in sets:
        check_set(each)
    names = [each.result_name for each in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    require(twice is None, f"two evaluation sets are called {twice!r}: give one of them a name")


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
        "--suite", nargs="+", action="extend", default=[], help="YAML files with sets, batch_size, tasks' options"
    )
    parser.add_argument("--data", nargs="+", action="extend", default=[], help="folders or addresses of sets")
    parser.add_argument("--split", default="test", help="of --data (default: test)")
    parser.add_argument(
        "--data_format", default="webdataset", help=f"of --data: {', '.join(FORMATS)} (default: webdataset)"
    )


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


def read_suites(args: argparse.Namespace, tasks: list[str]) -> EvaluationConfig:
    """All of --suite and --data as one config, its sets checked."""
    if args.precision is not None:
        one_of("--precision", args.precision, PRECISIONS)
    one_of("--data_format", args.data_format, FORMATS)
    suites = [(file, parse_config(EvaluationConfig, "eval", ["--config", file])) for file in args.suite]
    own = [SetConfig(path, task=tasks, split=args.split, format=args.data_format) for path in args.data]
    merged = merge_suites([*suites, ("--data", EvaluationConfig(sets=own))])
    check_sets(merged.sets)
    return merged


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

    from mmrep.evaluation.embedding.cache import EmbeddingCache, model_digest
    from mmrep.evaluation.embedding.sharding import shard_for_evaluation
    from mmrep.model.load import load

    cache, models, about = EmbeddingCache(), {}, {}
    for name, source in names.items():
        model = load(source, device, allow_pickle=args.allow_pickle)
        model.precision = args.precision or model.precision
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
    alike."""
    names: dict[str, str] = {}
    for source in sources:
        path = Path(source.removeprefix("hf-hub:"))
        name = path.resolve().parent.name if path.name == "final" else path.name or str(path)
        names[name if name not in names else source] = source
    require(len(names) == len(sources), "--model: the same model twice")
    return names


def require_free(option: str, folder: Path) -> None:
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{option} {folder}: expected a new folder or an empty one")
