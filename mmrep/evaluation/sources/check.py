"""Checks of an evaluation set that need neither torch nor the network."""

from collections.abc import Collection
from pathlib import Path

from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import SetConfig
from mmrep.data.files import can_be_a_name
from mmrep.data.paths import resolve_place
from mmrep.data.remote import is_remote

KINDS = {
    "zeroshot": "classes", "linear_probe": "classes", "knn": "classes", "corruption": "classes", "finetune": "classes",
    "occlusion": "classes", "retrieval": "captions", "rerank": "captions", "pairs": "captions",
}  # fmt: skip
"""What the records of a task must have; other tasks take either, or have records of their own."""
ONE_LABEL = ("linear_probe", "knn", "corruption", "finetune", "occlusion", "instance")
"""Tasks that need exactly one class an image."""
_FITTED = ("linear_probe", "knn", "finetune")
_KIND_OF_FORMAT = {
    "folder": "classes", "imagenet-val": "classes", "coco": "captions", "karpathy": "captions", "csv": "captions"
}  # fmt: skip
PAIR_FILES = (".json", ".jsonl", ".csv")
CLASSNAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"


def check_set(config: SetConfig) -> None:
    """Check that a set exists and fits its tasks, as far as names and small local files tell.

    Raises:
        ConfigError: no such folder, file or split; a task that does not fit; a training split that is the test split.
    """
    fitted = [task for task in config.tasks if task in _FITTED]
    require(
        not fitted or config.split != config.train_split,
        f"evaluation set {config.path}: {', '.join(fitted)} would be fitted on the split {config.split!r} that it is "
        "tested on; give another `train_split`",
    )
    check_place(config)
    if fitted and config.format in ("folder", "webdataset") and not is_remote(config.path):
        place = local_place(config)
        _split_folder(config, place, config.train_split)


def check_place(config: SetConfig) -> None:
    """Check all that `check_set` does except training splits, so that it can check these as well.

    Raises:
        ConfigError: see `check_set`.
    """
    kind = asked_kind(config)
    if opened_by_task(config):
        _check_own(config)
        return
    if is_remote(config.path):
        require(
            config.format == "webdataset",
            f"evaluation set {config.path}: format {config.format} is read from local files; copy it, or pack it with "
            "`mmrep data pack` and use format webdataset",
        )
        return
    place = local_place(config)
    if config.format in ("webdataset", "folder"):
        require(
            not place.is_file(), f"evaluation set {config.path}: is a file: give its `format` (coco, karpathy, csv)"
        )
        require(place.is_dir(), f"evaluation set {config.path}: no such folder")
        split = _split_folder(config, place, config.split)
        if config.format == "webdataset":
            _check_layout(config, place, split, kind)
    elif config.format == "imagenet-val":
        require(place.is_dir(), f"evaluation set {config.path}: no such folder")
    else:
        require(place.is_file(), f"evaluation set {config.path}: no such file")
    for field in ("images", "labels", "devkit_meta", "classnames", "templates"):
        _check_path(config, field)


def opened_by_task(config: SetConfig) -> bool:
    """Return whether a task reads the set itself: `instance` with a ground truth, or `pairs` with image files."""
    return config.ground_truth is not None or (
        "pairs" in config.tasks and (config.images is not None or Path(config.path).suffix in PAIR_FILES)
    )


def _check_own(config: SetConfig) -> None:
    task, field = ("instance", "ground_truth") if config.ground_truth is not None else ("pairs", "images")
    require(
        config.tasks == (task,),
        f"evaluation set {config.path}: `{field}` makes it a set for task {task} alone, got {', '.join(config.tasks)}",
    )
    require(local_place(config).exists(), f"evaluation set {config.path}: no such file or folder")
    require(
        getattr(config, field) is not None,
        f"evaluation set {config.path}: task pairs needs `images`, the folder that the file's image names start in",
    )
    _check_path(config, field)


def local_place(config: SetConfig) -> Path:
    """Return the folder or file of a set.

    Raises:
        ConfigError: its path can't be the name of a file.
    """
    require(can_be_a_name(config.path), f"evaluation set {config.path[:80]!r}: no name of a file or folder")
    return Path(resolve_place(config.path)).expanduser()


def asked_kind(config: SetConfig) -> str | None:
    """Return `classes` or `captions` by task and format; None where only the set itself can tell.

    Raises:
        ConfigError: tasks that need both, or the one that the format does not have.
    """
    needs = {KINDS[task]: task for task in config.tasks if task in KINDS}
    require(
        len(needs) < 2,
        f"evaluation set {config.path}: {' and '.join(needs.values())} need different sets, one with classes and one "
        "with captions; list it twice, with a name each",
    )
    asked, has = next(iter(needs), None), _KIND_OF_FORMAT.get(config.format)
    require(
        asked in (None, has) or has is None,
        f"evaluation set {config.path}: task {needs.get(asked or '')} needs {asked}, but format {config.format} has "
        f"{has}",
    )
    return asked or has


def _check_layout(config: SetConfig, folder: Path, split: Path, kind: str | None) -> None:
    where = f"evaluation set {config.path}"
    require(
        (split / "nshards.txt").is_file(),
        f"{where}: no {config.split}/nshards.txt; a folder of class folders? give format: folder",
    )
    place = folder / "dataset_type.txt"
    said = dataset_type(place.read_text(encoding="utf-8", errors="replace") if place.is_file() else None)
    kind = kind or ("captions" if said == "retrieval" else "classes")
    if kind == "classes" and not config.classnames and not (folder / CLASSNAMES).is_file():
        hint = f"; its dataset_type.txt says {said}: is it the task {config.tasks[0]} that you want?" if said else ""
        raise ConfigError(f"{where}: no {CLASSNAMES}; give `classnames`, a file or imagenet{hint}")
    require(
        kind == "captions" or bool(config.templates or config.classnames) or (folder / TEMPLATES).is_file(),
        f"{where}: no {TEMPLATES}; give `templates`, a file or imagenet",
    )
    if said == "multilabel":
        check_one_label(config)


def check_one_label(config: SetConfig) -> None:
    """Raise ConfigError for tasks that need exactly one class an image."""
    wrong = next((task for task in config.tasks if task in ONE_LABEL), None)
    require(
        wrong is None,
        f"evaluation set {config.path}: task {wrong} needs one class an image, but the set is multilabel",
    )


def dataset_type(text: str | None) -> str:
    """Return the type that a dataset_type.txt states; empty where there is none."""
    return (text or "").strip().lower()


def no_split(config: SetConfig, split: str, found: Collection[str]) -> ConfigError:
    """Return the error for a split that does not exist."""
    itself = "; split: . is the folder itself" if config.format == "folder" else ""
    has = ", ".join(sorted(found)[:10]) + (", …" if len(found) > 10 else "")
    return ConfigError(f"evaluation set {config.path}: no split {split!r} (it has {has or 'none'}{itself})")


def _split_folder(config: SetConfig, folder: Path, split: str) -> Path:
    place = folder / split
    if not place.is_dir():
        raise no_split(config, split, [entry.name for entry in folder.iterdir() if entry.is_dir()])
    return place


def _check_path(config: SetConfig, field: str) -> None:
    value = getattr(config, field)
    if value is None or is_remote(value) or (field in ("classnames", "templates") and value == "imagenet"):
        return
    require(can_be_a_name(value), f"evaluation set {config.path}: {field}: no name of a file: {value[:80]!r}")
    path = Path(value).expanduser()
    found = path.is_dir() if field == "images" else path.is_file()
    kind = "folder" if field == "images" else "file"
    require(found, f"evaluation set {config.path}: {field}: no such {kind}: {value}")
