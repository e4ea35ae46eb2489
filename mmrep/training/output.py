"""Output folders: what they hold, and which verb may write to them. This needs no torch."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrep.config.checks import require
from mmrep.config.evaluation import SetConfig
from mmrep.config.tree import TrainConfig
from mmrep.files import DamagedFile, read_json

LOG = logging.getLogger("mmrep")

RUN_CONFIG, INITIAL, INVENTORY = "config.yaml", "initial.json", "shards.tsv"
METRICS, SUMMARY, RESULTS = "metrics.jsonl", "summary.json", "results.json"
STUDY, SWEEP, FINAL, OUTCOMES, DIFF = "study.yaml", "sweep.json", "final", "outcomes", "diff.json"
HISTORY, DIAGNOSTICS, MAPS, PICTURES = "history.jsonl", "diagnostics.json", "patch_weights.png", "pictures.json"

_KINDS = (
    ("a study", (STUDY,)),
    ("a run", (METRICS, SUMMARY, "checkpoints")),
    ("an evaluation", (RESULTS, OUTCOMES)),
    ("a sweep", (SWEEP,)),
    ("a diff", (DIFF,)),
)


def kind_of(folder: Path) -> str:
    """Return what mmrep has written into a folder, such as `a study`, or an empty text; see _KINDS."""
    return next((kind for kind, names in _KINDS if any((folder / name).exists() for name in names)), "")


def check_kind(option: str, folder: Path, kind: str) -> None:
    """Raise ConfigError for a folder in which another verb keeps its results.

    Args:
        option: the option that names the folder.
        folder: the output folder.
        kind: what is to be written there; see `kind_of`.

    Raises:
        ConfigError: the folder is a file, or holds something else.
    """
    require(not folder.exists() or folder.is_dir(), f"{option} {folder}: is a file, not a folder")
    found = kind_of(folder)
    require(found in ("", kind), f"{option} {folder}: holds {found}, not {kind}: choose another --output_dir")


def check_output(config: TrainConfig) -> None:
    """Check that a run does not overwrite what its folder holds.

    Raises:
        ConfigError: the folder holds a run that is not to be continued, or something else; the checkpoint in `resume`
            does not exist.
    """
    folder = Path(config.output_dir)
    check_kind("output_dir", folder, "a run")
    used = (folder / METRICS).exists() or (folder / SUMMARY).exists()
    require(
        config.resume != "none" or not used,
        f"output_dir {folder} already holds a run: continue it with --resume auto, or choose another --output_dir",
    )
    if config.resume in ("none", "auto"):
        return
    place = Path(config.resume)
    require(
        place.is_dir(),
        f"resume: no such checkpoint folder: {config.resume} (valid: none, auto, a checkpoint's folder)",
    )
    require(
        not used or folder.resolve() in place.resolve().parents,
        f"output_dir {folder} already holds a run, and {place} is a checkpoint of another: continue it with --resume "
        "auto, or choose another --output_dir",
    )


def check_evaluation(
    option: str, place: Path, models: Mapping[str, str], sets: Sequence[SetConfig], precision: str | None = None
) -> None:
    """Check that an evaluation contains all results that it would overwrite.

    Args:
        option: the option that names the file or its folder.
        place: JSON file of the results.
        models: sources of the models, by name.
        sets: sets to evaluate on.
        precision: precision of all models; None means that of each model.

    Raises:
        ConfigError: another verb writes to the folder, or the file holds a model, set or task that is not asked for.
    """
    if place.parent.is_dir():
        check_kind(option, place.parent, "an evaluation")
    if not place.is_file():
        return
    try:
        content = read_results(place)
    except DamagedFile as error:
        LOG.warning("%s; it is written anew", error)
        return
    sources = {name: about.get("source") for name, about in content.get("models", {}).items()}
    lost = [f"model {source}" for name, source in sources.items() if models.get(name) != source]
    for name, about in content.get("models", {}).items():
        if precision not in (None, about.get("precision")):
            lost.append(f"model {name} in {about.get('precision')}")
    splits = {each.result_name: (each.path, each.split) for each in sets}
    for name, about in content.get("datasets", {}).items():
        before = about.get("path"), about.get("split")
        if name in splits and before not in ((None, None), splits[name]):
            lost.append(f"set {name} from {before[0]}, split {before[1]}")
    tasks = {each.result_name: each.tasks for each in sets}
    for entry in content["results"]:
        name, task = entry["dataset"], entry["task"]
        if name not in tasks:
            lost.append(f"set {name}")
        elif "auto" not in tasks[name] and task not in tasks[name]:
            lost.append(f"task {task} of set {name}")
    require(
        not lost,
        f"{option} {place}: holds results of {lost[0] if lost else ''}, which would be lost: choose another {option}",
    )


def read_config(place: Path) -> dict[str, Any]:
    """Return the content of a run's or study's YAML file, or an empty one with a warning where it is damaged.

    Raises:
        FileNotFoundError: there is no such file.
    """
    import yaml

    try:
        content = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if isinstance(content, dict) and content:
        return content
    LOG.warning("%s: empty or damaged; it is written anew", place)
    return {}


def read_results(place: Path) -> dict[str, Any]:
    """Return the content of a results.json.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFile: it is empty, truncated, or holds no results.
    """
    content = read_json(place)
    if not isinstance(content.get("results"), list):
        raise DamagedFile(f"{place}: no results in it")
    return content
