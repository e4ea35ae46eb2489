"""Class names and templates of a set: its own, those of a file, or CLIP's for ImageNet."""

import logging
import re
from collections import Counter
from collections.abc import Sequence

from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import SetConfig
from mmrep.data.layouts.classes import imagenet_names, imagenet_templates, imagenet_wnids
from mmrep.data.paths import read_lines

LOG = logging.getLogger("mmrep")

IMAGENET = "imagenet"
TEMPLATE = "a photo of a {c}."
_NO_WORD = re.compile(r"\d+|n\d{8}")
"""The name of a folder that is a number or a wnid."""


def templates_of(config: SetConfig, own: Sequence[str] | None) -> list[str]:
    """Return the templates that the config asks for, else the set's own, else the usual one.

    Raises:
        ConfigError: a file that can't be read, a template without `{c}`.
    """
    where = f"evaluation set {config.path}"
    asked = config.templates or (IMAGENET if config.classnames == IMAGENET and own is None else None)
    if asked is not None:
        templates = imagenet_templates() if asked == IMAGENET else read_lines(asked, f"{where}: templates")
    else:
        templates = list(own or [TEMPLATE])
    for template in templates:
        require("{c}" in template, f"{where}: a template without {{c}} for the class name: {template[:80]!r}")
    return templates


def names_given(config: SetConfig, count: int | None) -> list[str]:
    """Return the class names that `classnames` asks for, in the order of labels.

    Args:
        config: the set.
        count: the number of classes that the set states; None: it states none.

    Raises:
        ConfigError: a file that can't be read or has another number of names.
    """
    assert config.classnames is not None, "asked only where it is given"
    where = f"evaluation set {config.path}: classnames"
    names = imagenet_names() if config.classnames == IMAGENET else read_lines(config.classnames, where)
    require(
        count is None or len(names) == count,
        f"{where}: {config.classnames} has {len(names)} names, but the set has {count} classes",
    )
    return names


def folder_names(config: SetConfig, folders: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the class names of a set of class folders, and the label of each folder.

    Labels count the folders in the order of their names, as torchvision's ImageFolder does. But with ImageNet's names
    and folders named by numbers, as in ImageNet-V2, the number is the label.

    Args:
        config: the set.
        folders: names of the folders, sorted.

    Raises:
        ConfigError: a file that can't be read, another number of names, a folder that is no class of ImageNet or that
            the file does not name.
    """
    labels = list(range(len(folders)))
    if config.classnames is None:
        odd = [folder for folder in folders if _NO_WORD.fullmatch(folder)]
        if odd:
            LOG.warning(
                "evaluation set %s: %d class folders are called by numbers, the first %r, and so are the classes; "
                "`classnames: imagenet`, or a file, names them",
                config.path,
                len(odd),
                odd[0],
            )
        return list(folders), labels
    if config.classnames == IMAGENET:
        return _imagenet_folders(config, folders)
    lines = read_lines(config.classnames, f"evaluation set {config.path}: classnames")
    return _named(config, folders, lines), labels


def _imagenet_folders(config: SetConfig, folders: Sequence[str]) -> tuple[list[str], list[int]]:
    names = imagenet_names()
    numbers = [int(folder) for folder in folders if folder.isdecimal() and str(int(folder)) == folder]
    if len(numbers) == len(folders) and max(numbers) < len(names):
        return names, numbers
    by_wnid = dict(zip(imagenet_wnids(), names, strict=True))
    strange = [folder for folder in folders if folder not in by_wnid]
    if strange:
        raise ConfigError(
            f"evaluation set {config.path}: {len(strange)} of {len(folders)} class folders are neither a wnid of "
            f"ImageNet-1k nor a label from 0 to 999, the first {strange[0]!r}; correct `split`, or give a file as "
            "`classnames`"
        )
    return [by_wnid[folder] for folder in folders], list(range(len(folders)))


def _named(config: SetConfig, folders: Sequence[str], lines: list[str]) -> list[str]:
    where = f"evaluation set {config.path}: classnames: {config.classnames}"
    pairs = [line.split("\t", 1) for line in lines if "\t" in line]
    if pairs:
        if len(pairs) < len(lines):
            raise ConfigError(f"{where}: some lines have a tab, others have none; write FOLDER<tab>NAME in all")
        names = {folder.strip(): name.strip() for folder, name in pairs}
        require(len(names) == len(pairs), f"{where}: a folder is named twice")
        missing = [folder for folder in folders if folder not in names]
        if missing:
            raise ConfigError(
                f"{where} has no name for {len(missing)} of {len(folders)} class folders, the first {missing[0]!r}"
            )
        return [names[folder] for folder in folders]
    first = [line.split(None, 1)[0] for line in lines]
    require(
        set(first) != set(folders) or all(len(line.split(None, 1)) == 1 for line in lines),
        f"{where}: lines begin with the folders' names; put a tab between folder and name",
    )
    require(len(lines) == len(folders), f"{where} has {len(lines)} names, but the set has {len(folders)} classes")
    return lines


def warn_of_doubles(config: SetConfig, names: Sequence[str]) -> None:
    """Warn of class names that occur twice."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        LOG.warning(
            "evaluation set %s: class names that occur twice can't be told apart: %s", config.path, ", ".join(twice)
        )
