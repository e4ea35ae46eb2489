"""Evaluation sets of image files: class folders, ImageNet's flat folder, annotation files."""

import logging
import re
from pathlib import Path

from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import SetConfig
from mmrep.data.layouts.captions import read_coco, read_karpathy, read_table
from mmrep.data.layouts.classes import imagenet_names, read_folder, read_imagenet_val
from mmrep.data.layouts.contents import Contents, Item, Omission
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.check import local_place
from mmrep.evaluation.sources.names import folder_names, names_given, templates_of
from mmrep.evaluation.sources.records import FileRecords, Found

LOG = logging.getLogger("mmrep")

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_FIELDS = {"sep": "separator", "table": "path"}
"""Options of `mmrep data pack`, which has the same readers, that have another name in a set."""
_OPTION = re.compile(
    r"--(images|table|sep|split|labels|classnames|templates|devkit_meta|image_column|caption_column)\b"
)


def read_files(config: SetConfig) -> Found:
    """Read a set of any format except `webdataset`.

    Wrong annotations and missing images are errors. What can be left out without loss is left out, with one warning
    that counts it.

    Raises:
        ConfigError: a file or folder is missing, a wrong number of class names, splits in place of classes.
        DataError: malformed or contradictory annotations, missing images, nothing in the set.
    """
    try:
        contents, classnames, templates = _read(config)
    except (ConfigError, DataError) as error:
        raise type(error)(_in_terms_of_sets(config, str(error))) from error
    _settle(config, contents)
    return Found(FileRecords(contents.images, contents.items, config.captions_per_image), classnames, templates)


def _read(config: SetConfig) -> tuple[Contents, list[str], list[str]]:
    """Return the content of a set, its class names and its templates."""
    if config.format == "folder":
        return _folder(config)
    if config.format == "imagenet-val":
        return _imagenet_val(config)
    assert config.images is not None, "checked by SetConfig"
    place, images = local_place(config), Path(config.images).expanduser()
    if config.format == "coco":
        return read_coco(place, images, config.split), [], []
    if config.format == "karpathy":
        return read_karpathy(place, images, [config.split]), [], []
    columns = (config.image_column, config.caption_column, config.separator)
    return read_table(place, images, config.split, *columns), [], []


def _in_terms_of_sets(config: SetConfig, message: str) -> str:
    """Return a reader's message with a set's fields in place of options of `mmrep data pack`."""
    fields = _FIELDS if config.images else {**_FIELDS, "images": "path"}
    text = _OPTION.sub(lambda option: f"`{fields.get(option[1], option[1])}`", message)
    return text if str(local_place(config)) in text else f"evaluation set {config.path}: {text}"


def _folder(config: SetConfig) -> tuple[Contents, list[str], list[str]]:
    place = local_place(config) / config.split
    contents = read_folder(place, config.split)
    _refuse_splits(config, contents)
    classnames, labels = folder_names(config, contents.classnames)
    items = []
    for item in contents.items:
        assert item.label is not None, "a class folder's images have its label"
        if _has_image_name(item):
            items.append(item._replace(label=labels[item.label]))
        else:
            contents.problems.append(Omission(item.name, f"not called as an image ({', '.join(_IMAGES)})"))
    contents.items = items
    return contents, classnames, templates_of(config, None)


def _refuse_splits(config: SetConfig, contents: Contents) -> None:
    """Raise ConfigError for a class folder that holds nothing but several folders of images, as a split does."""
    within: dict[str, set[str]] = {}
    for item in filter(_has_image_name, contents.items):
        folder, inner, *deeper = item.name.split("/")
        within.setdefault(folder, set()).add(inner if deeper else "")
    for folder, inners in within.items():
        split = (Path(config.split) / folder).as_posix()
        require(
            len(inners) == 1 or "" in inners,
            f"evaluation set {config.path}: class folder {folder!r} holds only folders: is it a split? give split: "
            f"{split}",
        )


def _has_image_name(item: Item) -> bool:
    return Path(item.name).suffix.lower() in _IMAGES


def _imagenet_val(config: SetConfig) -> tuple[Contents, list[str], list[str]]:
    assert config.labels is not None, "checked by SetConfig"
    meta = Path(config.devkit_meta).expanduser() if config.devkit_meta else None
    contents = read_imagenet_val(local_place(config), Path(config.labels).expanduser(), "test", devkit_meta=meta)
    own = imagenet_names()
    classnames = names_given(config, len(own)) if config.classnames else own
    if config.templates is None:
        return contents, classnames, contents.templates
    return contents, classnames, templates_of(config, None)


def _settle(config: SetConfig, contents: Contents) -> None:
    """Raise DataError for problems that make figures wrong; warn once of the others."""
    where = f"evaluation set {config.path}"
    grave = [problem for problem in contents.problems if not isinstance(problem, Omission)]
    if grave:
        raise DataError(
            f"{where}: {len(grave)} problems among {len(contents.items) + len(grave)} samples listed, the first: "
            f"{grave[0].item}: {grave[0].reason}; correct the source"
        )
    missing = [item for item in contents.items if not (contents.images / item.name).is_file()]
    if missing:
        raise DataError(
            f"{where}: {len(missing)} of {len(contents.items)} images are missing in {contents.images}, the first: "
            f"{missing[0].name}"
        )
    if contents.problems:
        first = contents.problems[0]
        LOG.warning("%s: %d left out, the first: %s: %s", where, len(contents.problems), first.item, first.reason)
    if not contents.items:
        raise DataError(f"{where}: no images in it")
