"""`mmrep data ACTION`: shards are made, checked and indexed."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import progress, say
from mmrep.config.checks import MmrepError, require
from mmrep.config.data import DataConfig, SourceConfig
from mmrep.config.shards import ScenesSpec


@dataclass(frozen=True, kw_only=True)
class Scenes(ScenesSpec):
    """Write the synthetic set of scenes as shards.

    Attributes:
        output_dir: A folder that does not exist yet.
    """

    output_dir: str


def _scenes(options: Scenes, _: list[str]) -> None:
    from mmrep.data.scenes import write_scenes

    values = dataclasses.asdict(options)
    folder = Path(values.pop("output_dir"))
    with progress("scenes", "image") as show:
        write_scenes(folder, ScenesSpec(**values), show)
    say(f"written: {folder}")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Options of actions that read shards.

    Attributes:
        shards: Tar files, paths with braces, or folders.
        workers: Processes that read them.
    """

    shards: list[str]
    workers: int = 1


@dataclass(frozen=True, kw_only=True)
class Check(Shards):
    """Read every text, label and image header of shards, and name every problem. The exit status is 1 if there is one.

    Attributes:
        deep: Decode every image too, compare bytes with the CRCs of `mmrep data index`, and note what is unusual.
        caption: Captions that every sample must have: txt, cls, json:KEY. By default those that most samples have.
        classes: Number of classes. Labels have to be below it.
        max_pixels: Most pixels of an image.
        output: JSON file for the whole report.
    """

    deep: bool = False
    caption: list[str] = field(default_factory=list)
    classes: int | None = None
    max_pixels: int = DataConfig.max_pixels
    output: str | None = None


def _check(options: Check, _: list[str]) -> None:
    from mmrep.data.paths import local_shards

    for kind in options.caption:
        SourceConfig("-", caption=kind)  # raises ConfigError for what is no kind of caption
    shards = local_shards(options.shards)
    from mmrep.data import check
    from mmrep.data.tar import DataError

    asked = check.Check(
        deep=options.deep, captions=tuple(options.caption), classes=options.classes, max_pixels=options.max_pixels
    )
    with progress("checking", "shard") as show:
        report = check.check_shards(shards, asked, options.workers, show)
    if options.output:
        place = Path(options.output)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    say(report.text() + (f"\nwritten: {options.output}" if options.output else ""))
    if report.problems:
        raise DataError(f"{len(report.problems)} problems found")


@dataclass(frozen=True, kw_only=True)
class Index(Shards):
    """Write an index file with the CRC of every member next to every shard. Training then starts faster, and notices
    bytes that were damaged later.

    Attributes:
        catalog: Also write one file (.npz) that lists all shards, relative to its folder. `shards: FILE.npz` starts a
            run without looking at any of them.
    """

    catalog: str | None = None


def _index(options: Index, _: list[str]) -> None:
    catalog = options.catalog
    require(catalog is None or catalog.endswith(".npz"), f"--catalog {catalog}: expected a name in .npz")
    from mmrep.data.catalog import catalog_of, write_catalog
    from mmrep.data.indexing import write_sidecar
    from mmrep.data.parallel import over
    from mmrep.data.paths import local_shards

    shards = local_shards(options.shards)
    with progress("indexing", "shard") as show:
        samples = sum(over(shards, write_sidecar, options.workers, show))
    if catalog:
        write_catalog(catalog_of(shards), Path(catalog))
        say(f"written: {catalog}")
    say(f"{len(shards)} shards, {samples} samples: index files written next to them")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Prove from the ledger of a run (`--data.ledger true`) that every sample came once an epoch.

    Attributes:
        run: Folder of the run.
    """

    run: str


def _ledger(options: Ledger, _: list[str]) -> None:
    from mmrep.data.ledger import check_ledger

    report = check_ledger(Path(options.run))
    say(report.text())
    if report.problems:
        raise MmrepError(f"{len(report.problems)} problems found")


SCENES = Verb(Scenes, _scenes, examples=("mmrep data scenes --output_dir data/scenes",))
CHECK = Verb(Check, _check, positional="shards", examples=("mmrep data check data/pairs/train --deep",))
INDEX = Verb(Index, _index, positional="shards", examples=("mmrep data index data/pairs/train --catalog all.npz",))
LEDGER = Verb(Ledger, _ledger, positional="run", examples=("mmrep data ledger runs/x",))
