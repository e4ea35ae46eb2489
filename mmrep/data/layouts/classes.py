"""Readers of class sets: a folder of images for each class, and ImageNet's flat validation folder."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmrep.config.checks import ConfigError
from mmrep.data.layouts.contents import Contents, Item, Omission, Problem, existing_folder, image_kind, read_text
from mmrep.data.paths import read_lines
from mmrep.data.tar import DataError

IMAGENET = "imagenet"


def imagenet_wnids() -> list[str]:
    """Return the 1,000 wnids of ImageNet-1k in sorted order: label i is the i-th."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def imagenet_names() -> list[str]:
    """Return OpenAI's class names for CLIP, in the order of the wnids."""
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def imagenet_templates() -> list[str]:
    """Return OpenAI's 80 templates."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{c}") for template in OPENAI_IMAGENET_TEMPLATES]


def read_folder(images: Path, split: str, classnames: str | None = None, templates: str | None = None) -> Contents:
    """Read class folders. Labels count the folders in the order of their names, as torchvision's ImageFolder does.

    Args:
        images: the folder of class folders. Images may lie deeper in these; hidden files are ignored.
        split: name of the split.
        classnames: a file of lines `FOLDER NAME` (separated by a tab if folder names contain blanks), or `imagenet`
            for open_clip's names of wnids; None: the folders' names.
        templates: a file of templates, or `imagenet` for OpenAI's 80; None: one template.

    Raises:
        ConfigError: a missing file or folder, or no class folders.
        DataError: a class folder without a name in `classnames`.
    """
    existing_folder(images, "--images")
    visible = sorted(path for path in images.iterdir() if not path.name.startswith("."))
    folders = [path for path in visible if path.is_dir()]
    if not folders:
        raise ConfigError(f"--images: no class folders in {images}")
    contents = Contents(images, [Path(file) for file in (classnames, templates) if file not in (None, IMAGENET)])
    names = {folder.name: folder.name for folder in folders}
    if classnames == IMAGENET:
        names = dict(zip(imagenet_wnids(), imagenet_names(), strict=True))
    elif classnames is not None:
        names = _class_map(Path(classnames))
    for path in visible:
        if path not in folders and _is_image(path):
            contents.problems.append(Omission(path.name, "lies in no class folder"))
    for label, folder in enumerate(folders):
        if folder.name not in names:
            raise DataError(f"--classnames {classnames}: no name for the class folder {folder.name!r}")
        contents.classnames.append(names[folder.name])
        found = [Item(path.relative_to(images).as_posix(), split, label=label) for path in _files(folder)]
        contents.items += found
        if not found:
            contents.problems.append(Omission(f"class {folder.name}", "no images in its folder"))
    contents.templates = ["a photo of a {c}."] if templates is None else _templates(templates)
    return contents


def read_imagenet_val(
    images: Path,
    labels: Path,
    split: str,
    classnames: str | None = None,
    templates: str | None = None,
    devkit_meta: Path | None = None,
) -> Contents:
    """Read ImageNet's validation images, which lie in one folder, with the classes from a file.

    Labels count the 1,000 wnids in sorted order, as in timm, torchvision and open_clip's class names.

    Args:
        images: the folder of `ILSVRC2012_val_*.JPEG`.
        labels: lines `NAME LABEL` or `NAME WNID`; or one wnid a line, or the devkit's
            `ILSVRC2012_validation_ground_truth.txt`, where line i belongs to image i.
        split: name of the split.
        classnames: a file with a name a line, in the order of labels; None: open_clip's names.
        templates: as in `read_folder`; None: OpenAI's 80.
        devkit_meta: the devkit's `meta.mat`. The numbers of the ground truth have an order of their own, which only
            this file tells.

    Raises:
        ConfigError: a missing file or folder, or numbers without `devkit_meta`.
        DataError: a malformed line, an unknown class, an image listed twice.
    """
    existing_folder(images, "--images")
    contents = Contents(
        images, [Path(file) for file in (labels, classnames, templates, devkit_meta) if file not in (None, IMAGENET)]
    )
    expected = _labels(labels, devkit_meta)
    files: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        if not path.name.startswith(".") and path.is_file() and files.setdefault(path.stem, path) != path:
            contents.problems.append(
                Problem(path.name, f"has the same stem as {files[path.stem].name}, and labels are by stem")
            )
    for stem, label in sorted(expected.items()):
        if stem in files:
            contents.items.append(Item(files[stem].name, split, label=label))
        else:
            contents.problems.append(Problem(stem, "no such file"))
    contents.problems += [
        Omission(path.name, f"no label in {labels.name}") for stem, path in files.items() if stem not in expected
    ]
    own = classnames not in (None, IMAGENET)
    contents.classnames = read_lines(str(classnames), "--classnames") if own else imagenet_names()
    if expected and max(expected.values()) >= len(contents.classnames):
        most = max(expected.values())
        raise DataError(f"{labels}: label {most}, but there are {len(contents.classnames)} class names")
    contents.templates = _templates(templates or IMAGENET)
    return contents


def _labels(path: Path, devkit_meta: Path | None) -> dict[str, int]:
    """Return the label of every image by the stem of its name."""
    order = {wnid: label for label, wnid in enumerate(imagenet_wnids())}
    devkit = _devkit_wnids(devkit_meta) if devkit_meta else None
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


def _devkit_wnids(meta: Path) -> dict[int, str]:
    """Return the wnids of the devkit's numbers (ILSVRC2012_ID)."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(meta, squeeze_me=True)["synsets"]
        return {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except OSError as error:
        raise ConfigError(f"--devkit_meta: can't read {meta}: {error.strerror}") from error
    except Exception as error:  # scipy raises many types for a file that is no .mat
        raise DataError(f"{meta}: not the devkit's meta.mat: {error}") from error


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


def _templates(given: str) -> list[str]:
    templates = imagenet_templates() if given == IMAGENET else read_lines(given, "--templates")
    for template in templates:
        if "{c}" not in template:
            raise ConfigError(f"--templates: {template[:80]!r} has no {{c}} for the class name")
    return templates


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder in the order of their names. Links are followed, but a circle only once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real not in seen:
            yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def _refuse(error: OSError) -> None:
    # os.walk skips a folder that can't be read, and its images would be lost silently.
    raise DataError(f"{error.filename}: {error.strerror}") from error


def _is_image(path: Path) -> bool:
    try:
        return bool(image_kind(path))
    except ValueError:
        return False
