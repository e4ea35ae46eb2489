"""`mmrep data ACTION`: shards made, checked, indexed."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from mmrep.config.checks import ConfigError, MmrepError, require
from mmrep.terminal import Parser, progress, say


def run_action(argv: list[str]) -> None:
    """Runs an action.

    Raises:
        ConfigError: wrong use.
        MmrepError: what the action found wrong.
    """
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<8} {description}" for name, (_, description) in _ACTIONS.items()]
        say("\n".join([f"usage: mmrep data {'|'.join(_ACTIONS)} [options]", "", *lines]))
        return
    if argv[0] not in _ACTIONS:
        raise ConfigError(f"unknown action {argv[0]!r} (valid: {', '.join(_ACTIONS)})")
    _ACTIONS[argv[0]][0](argv[1:])


def _scenes(argv: list[str]) -> None:
    from mmrep.data.scenes import ScenesSpec, write_scenes

    parser = Parser("mmrep data scenes", description="Writes a synthetic compositional set as shards.")
    parser.add_argument("--output_dir", required=True)
    for name, value in ScenesSpec().__dict__.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default: {value}")
    args = vars(parser.parse_args(argv))
    folder = Path(args.pop("output_dir"))
    with progress("scenes", "image") as show:
        write_scenes(folder, ScenesSpec(**args), show)
    say(f"written: {folder}")


def _pack(argv: list[str]) -> None:
    from tqdm import tqdm

    from mmrep.data.layouts.formats import add_arguments, read_contents
    from mmrep.data.pack import PackSpec, pack

    parser = Parser("mmrep data pack", description="Writes image files and their annotations as WebDataset shards.")
    add_arguments(parser)
    args = parser.parse_args(argv)
    spec = PackSpec(**{field.name: getattr(args, field.name) for field in dataclasses.fields(PackSpec)})
    with tqdm(unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(stage: str, done: int, total: int) -> None:
            if done == 1:
                bar.reset(total)
                bar.set_description(stage)
            bar.update(done - bar.n)

        pack(lambda: read_contents(args), args.output_dir, spec, show)
    say(f"written: {args.output_dir}")


def _shard_parser(action: str, description: str) -> Parser:
    parser = Parser(f"mmrep data {action}", description=description)
    parser.add_argument("shards", nargs="+", help="tar files, paths with braces, folders")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    return parser


def _check(argv: list[str]) -> None:
    parser = _shard_parser(
        "check",
        "Indexes the shards anew, reads every text, label and image header, and names every problem. Exit status 1 "
        "where there is any.",
    )
    parser.add_argument(
        "--deep", action="store_true",
        help="decode every image too, compare bytes with the CRCs of `mmrep data index`, and note what is unusual",
    )  # fmt: skip
    parser.add_argument(
        "--caption", action="append", default=[],
        help="every sample must have it: txt, cls, json:KEY; may be repeated (default: what most samples have)",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, help="labels have to be below this number")
    parser.add_argument("--max_pixels", type=int, help="limit of an image (default: as in training)")
    parser.add_argument("--output", help="JSON file for the whole report")
    args = parser.parse_args(argv)
    from mmrep.config.data import SourceConfig
    from mmrep.data.paths import local_shards

    for kind in args.caption:
        SourceConfig("-", caption=kind)  # which refuses what is no kind of caption
    shards = local_shards(args.shards)
    from mmrep.data.check import Check, check_shards
    from mmrep.data.tar import DataError

    given = {name: getattr(args, name) for name in ("classes", "max_pixels") if getattr(args, name) is not None}
    check = Check(deep=args.deep, captions=tuple(args.caption), **given)
    with progress("checking", "shard") as show:
        report = check_shards(shards, check, args.workers, show)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    say(report.text() + (f"\nwritten: {args.output}" if args.output else ""))
    if report.problems:
        raise DataError(f"{len(report.problems)} problems found")


def _index(argv: list[str]) -> None:
    parser = _shard_parser(
        "index",
        "Writes an index file with the CRC of every member beside every shard: training starts faster, and notices "
        "bytes that were damaged later.",
    )
    parser.add_argument(
        "--catalog",
        help="also write one file that lists all shards, relative to its folder: `shards: FILE.npz` starts a run "
        "without looking at any of them",
    )
    args = parser.parse_args(argv)
    require(args.catalog is None or args.catalog.endswith(".npz"), f"--catalog {args.catalog}: expected a name in .npz")
    from mmrep.data.catalog import catalog_of, write_catalog
    from mmrep.data.indexing import write_sidecar
    from mmrep.data.parallel import over
    from mmrep.data.paths import local_shards

    shards = local_shards(args.shards)
    with progress("indexing", "shard") as show:
        samples = sum(over(shards, write_sidecar, args.workers, show))
    if args.catalog:
        write_catalog(catalog_of(shards), Path(args.catalog))
        say(f"written: {args.catalog}")
    say(f"{len(shards)} shards, {samples} samples: index files written beside them")


def _ledger(argv: list[str]) -> None:
    parser = Parser(
        "mmrep data ledger",
        description="Proves from the ledger of a run (--data.ledger true) that every sample came once an epoch.",
    )
    parser.add_argument("run", help="the run's folder")
    run = Path(parser.parse_args(argv).run)
    from mmrep.data.ledger import check_ledger

    report = check_ledger(run)
    say(report.text())
    if report.problems:
        raise MmrepError(f"{len(report.problems)} problems found")


_ACTIONS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "scenes": (_scenes, "write the synthetic compositional set"),
    "pack": (_pack, "write image files and annotations as shards"),
    "check": (_check, "read every sample, report every problem"),
    "index": (_index, "write index files beside the shards, and a catalog of all"),
    "ledger": (_ledger, "prove the order of a run from its ledger"),
}
