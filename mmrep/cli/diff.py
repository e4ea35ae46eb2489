"""`mmrep diff`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrep import __version__
from mmrep.cli.models import ModelsAndSets, find_device, is_quiet, open_local, require_writable
from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.files import DamagedFile, read_json, whole_file, write_json
from mmrep.study.diff import NOTE, Joined, facts, join_runs, table, write_table
from mmrep.training.output import DIFF, check_kind

if TYPE_CHECKING:
    from PIL.Image import Image

Found = list[tuple[Joined, "Image | None"]]
"""The joined answers of a set and its contact sheet."""
_LONGEST = 120


@dataclass(frozen=True, kw_only=True)
class Options(ModelsAndSets):
    """Show which samples one of two models answers right and the other wrong. Without --data and --suite, the outcomes
    that two finished runs keep in their folders are joined, and no model is loaded.

    Attributes:
        model: The two models: runs, their final/, open_clip folders, or hf-hub:user/name.
        output_dir: Folder for diff.json, a table of all samples (CSV) and a contact sheet (PNG) for each set. By
            default results/A-vs-B/SETS.
    """

    output_dir: str | None = None


def run(options: Options, _: list[str]) -> None:
    """Join the answers of two models, write and print them.

    Raises:
        ConfigError: wrong use.
        MmrepError: unreadable data, or a model that does not fit.
    """
    require(len(options.model) == 2, f"expected two models, as in mmrep diff runs/a runs/b, got {len(options.model)}")
    names = options.names()
    a, b = names.values()
    require(Path(a).resolve() != Path(b).resolve(), f"--model {b}: the same model twice")
    configs = options.read_suites(["auto"])
    joined = [] if configs else join_runs(names)
    sets = [each.result_name for config in configs for each in config.sets] or [each.dataset for each in joined]
    folder = Path(options.output_dir or _default_folder(list(names), list(dict.fromkeys(sets))))
    _check_output(folder, names)
    if configs:
        found, about = _evaluated(options, names, configs, folder)
    else:
        require_writable("--output_dir", folder)
        found, about = [(each, None) for each in joined], {name: {"source": path} for name, path in names.items()}
    _write(folder, found, about)
    tables = [table(each, list(names)) for each, _ in found]
    say("\n\n".join([*tables, NOTE, f"written: {folder}/{DIFF}, {', '.join(_files(found))}"]))


def _evaluated(
    options: Options, names: dict[str, str], configs: Sequence[EvaluationConfig], folder: Path
) -> tuple[Found, dict[str, Any]]:
    """Return the answers of both models on every set, and what diff.json says about the models."""
    from mmrep import distributed
    from mmrep.evaluation.context import Context
    from mmrep.evaluation.sets import open_set
    from mmrep.study.diff_models import answers_of, sheet

    require(distributed.launched() == 1, "diff: one process does all; leave accelerate launch out")
    device = find_device(options.device)
    groups = [(config, open_local(config.sets)) for config in configs]
    require_writable("--output_dir", folder)
    cache, models, about = options.load(names, device)
    found: Found = []
    for config, sets in groups:
        for each in sets:
            evalset = open_set(each) if isinstance(each, SetConfig) else each
            context = Context(models, evalset, config, is_quiet(), cache if options.cache else None)
            found += [(answers.joined, sheet(answers, context)) for answers in answers_of(context)]
    return found, about["models"]


def _check_output(folder: Path, names: dict[str, str]) -> None:
    """Raise ConfigError where the folder holds something else, or a diff of other models."""
    check_kind("--output_dir", folder, "a diff")
    if not (folder / DIFF).is_file():
        return
    try:
        before = read_json(folder / DIFF).get("models", {})
    except DamagedFile:
        return
    sources = [about.get("source") for about in before.values()]
    if sources != list(names.values()):
        raise ConfigError(f"--output_dir {folder}: holds a diff of {' and '.join(map(str, sources))}: choose another")


def _write(folder: Path, found: Found, about: dict[str, Any]) -> None:
    """Write the tables and contact sheets, and at last diff.json."""
    names = list(about)
    for joined, picture in found:
        write_table(joined, names, folder / f"{joined.stem}.csv")
        if picture is not None:
            with whole_file(folder / f"{joined.stem}.png") as part:
                picture.save(part, "PNG")
    content = {"schema": 1, "a": names[0], "b": names[1], "note": NOTE, "models": about}
    write_json(folder / DIFF, content | {"sets": [facts(joined) for joined, _ in found], "mmrep": __version__})


def _files(found: Found) -> list[str]:
    return [
        f"{joined.stem}.{kind}" for joined, picture in found for kind in ("csv", "png")[: 1 + (picture is not None)]
    ]


def _default_folder(models: Sequence[str], sets: Sequence[str]) -> str:
    """Return the default folder of a diff: other models or sets have another one."""
    parts = "-vs-".join(models), "+".join(sets)
    return "/".join(["results", *(part.replace("/", "_")[:_LONGEST] for part in parts)])


VERB = Verb(
    Options,
    run,
    positional="model",
    lead=("model", "data", "suite", "split", "output_dir", "batch_size", "precision", "cache", "device"),
    examples=(
        "mmrep diff runs/a runs/b --data data/imagenet_sample",
        "mmrep diff studies/quickstart/runs/ggem-0 studies/quickstart/runs/avg-0",
    ),
)
