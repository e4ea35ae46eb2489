"""Class sets: a folder of images for each class, and ImageNet's flat validation folder with a class map."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmrep.config.checks import ConfigError
from mmrep.data.layouts.contents import Contents, Item, Omission, Problem, existing_folder, read_text
from mmrep.data.layouts.files import image_kind
from mmrep.data.layouts.imagenet import devkit_wnids, imagenet_names, imagenet_templates, imagenet_wnids
from mmrep.data.paths import read_lines
from mmrep.data.tar import DataError

IMAGENET = "imagenet"


def read_folder(images: Path, split: str, classnames: str | None = None, templates: str | None = None) -> Contents:
    """Images of class folders; labels count the folders in the order of their names, as torchvision's ImageFolder does.

    Args:
        images: the folder of class folders; images may lie deeper in these, hidden files don't count.
        split: what to call the split.
        classnames: a file of lines `FOLDER NAME` (with a tab between where folders have blanks in their names), or
            `imagenet` for open_clip's names of wnids; None takes the folders' names.
        templates: a file of templates, or `imagenet` for OpenAI's 80; None: one.

    Raises:
        ConfigError: a missing file or folder, no class folders.
        DataError: a class folder without a name in `classnames`.
    """
    existing_folder(images, "--images")
    visible = sorted(path for path in images.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        raise ConfigError(f"--images: no class folders in {images}")
    named = classnames is not None and classnames != IMAGENET
    contents = Contents(
        images, [Path(file) for file in (classnames, templates) if file is not None and file != IMAGENET]
    )
    names = _class_map(Path(str(classnames))) if named else _imagenet_map() if classnames else None
    for path in visible:
        if path not in folders and _is_image(path):
            contents.problems.append(Omission(path.name, "lies in no class folder"))
    for label, folder in enumerate(folders):
        if names is not None and folder.name not in names:
            raise DataError(f"--classnames {classnames}: no name for the class folder {folder.name!r}")
        contents.classnames.append(names[folder.name] if names is not None else folder.name)
        found = [Item(path.relative_to(images).as_posix(), split, label=label) for path in _files(folder)]
        contents.items += found
        if not found:
            contents.problems.append(Omission(f"class {folder.name}", "no images in its folder"))
    contents.templates = _templates(templates, default=["a photo of a {c}."])
    return contents


def read_imagenet_val(
    images: Path,
    labels: Path,
    split: str,
    classnames: str | None = None,
    templates: str | None = None,
    devkit_meta: Path | None = None,
) -> Contents:
    """ImageNet's validation images, all in one folder, with the classes from a file.

    Labels count the 1,000 wnids in sorted order, as timm, torchvision and open_clip's class names do.

    Args:
        images: the folder of `ILSVRC2012_val_*.JPEG`.
        labels: lines `NAME LABEL` or `NAME WNID`; or one wnid a line, or the devkit's
            `ILSVRC2012_validation_ground_truth.txt`, where line i is of image i.
        split: what to call the split.
        classnames: a file with a name a line, in the order of labels; None: open_clip's.
        templates: as in `read_folder`; None: OpenAI's 80.
        devkit_meta: the devkit's `meta.mat`, without which the numbers of the ground truth mean nothing: they count
            in an order of their own.

    Raises:
        ConfigError: a missing file or folder, numbers without `devkit_meta`.
        DataError: a malformed line, an unknown class, an image listed twice.
    """
    existing_folder(images, "--images")
    contents = Contents(
        images, [Path(file) for file in (labels, classnames, templates, devkit_meta) if file not in (None, IMAGENET)]
    )
    wanted = _labels(labels, devkit_meta)
    files: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if not path.name.startswith(".") and path.is_file() and files.setdefault(path.stem, path) != path:
            contents.problems.append(Problem(path.name, f"called as {files[path.stem].name}, and labels go by stems"))
    for stem, label in sorted(wanted.items()):
        if stem in files:
            contents.items.append(Item(files[stem].name, split, label=label))
        else:
            contents.problems.append(Problem(stem, "no such file"))
    contents.problems += [
        Omission(path.name, f"no label in {labels.name}") for s, path in files.items() if s not in wanted
    ]
    own = classnames is not None and classnames != IMAGENET
    contents.classnames = read_lines(str(classnames), "--classnames") if own else imagenet_names()
    if wanted and max(wanted.values()) >= len(contents.classnames):
        raise DataError(f"{labels}: label {max(wanted.values())}, but there are {len(contents.classnames)} class names")
    contents.templates = _templates(templates or IMAGENET, default=[])
    return contents


def _labels(path: Path, devkit_meta: Path | None) -> dict[str, int]:
    """The label of every image, by the stem of its name."""
    order = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    devkit = devkit_wnids(devkit_meta) if devkit_meta else None
    labels: dict[str, int] = {}
    for number, line in enumerate(read_text(path, "--labels").rstrip().splitlines(), 1):
        where = f"{path}: line {number}"
        words = line.split()
        if len(words) not in (1, 2):
            raise DataError(f"{where}: expected `NAME LABEL`, `NAME WNID`, or one wnid or number, got {line[:60]!r}")
        stem = Path(words[0]).stem if len(words) == 2 else f"ILSVRC2012_val_{number:08d}"
        value = words[-1]
        if len(words) == 1 and _is_number(value):
            if devkit is None:
                raise ConfigError(
                    f"{where}: a number alone counts in the devkit's own order, not that of sorted wnids; give the"
                    " devkit's data/meta.mat as --devkit_meta"
                )
            value = devkit.get(int(value), value + " (in --devkit_meta)")
        if value not in order and not (len(words) == 2 and _is_number(value) and int(value) < len(order)):
            raise DataError(
                f"{where}: unknown class {value[:80]}; expected a wnid of ImageNet-1k or a label from 0 to 999"
            )
        if stem in labels:
            raise DataError(f"{where}: image {stem} is listed twice")
        labels[stem] = order[value] if value in order else int(value)
    return labels


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _class_map(path: Path) -> dict[str, str]:
    names: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, "--classnames"), 1):
        folder, name = (line.split("\t", 1) if "\t" in line else [*line.split(None, 1), ""])[:2]
        if not name.strip():
            raise DataError(f"{path}: line {number}: expected `FOLDER NAME`, got {line[:60]!r}")
        if folder in names:
            raise DataError(f"{path}: line {number}: {folder!r} is listed twice")
        names[folder] = name.strip()
    return names


def _imagenet_map() -> dict[str, str]:
    return dict(zip(imagenet_wnids(), imagenet_names(), strict=True))


def _templates(given: str | None, default: list[str]) -> list[str]:
    if given is None:
        return default
    templates = imagenet_templates() if given == IMAGENET else read_lines(given, "--templates")
    for template in templates:
        if "{c}" not in template:
            raise ConfigError(f"--templates: {template[:80]!r} has no {{c}} for the class name")
    return templates


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their names; links are followed, in circles once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def _refuse(error: OSError) -> None:
    """os.walk passes over a folder that can't be read; its images would be lost."""
    raise DataError(f"{error.filename}: {error.strerror}") from error


def _is_image(path: Path) -> bool:
    try:
        return bool(image_kind(path))
    except ValueError:
        return False
