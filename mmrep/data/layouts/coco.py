"""COCO's own caption files, and Karpathy's splits of COCO, Flickr8k and Flickr30k."""

from pathlib import Path
from typing import Any

from mmrep.config.checks import one_of
from mmrep.data.layouts.contents import (
    Contents,
    Item,
    Problem,
    clean_captions,
    existing_folder,
    read_lists,
    value_of,
    within_folder,
)
from mmrep.data.tar import DataError

KARPATHY_SPLITS = ("train", "val", "test")


def read_coco(annotations: Path, images: Path, split: str) -> Contents:
    """Images and captions of a `captions_*.json`, in the order of its images.

    Args:
        annotations: the file; `images` have `id` and `file_name`, `annotations` have `id`, `image_id` and `caption`.
        images: the folder of the files.
        split: what to call the split.

    Raises:
        ConfigError: a file or folder is missing.
        DataError: not a file of this format; a name that leaves the folder.
    """
    existing_folder(images, "--images")
    pictures, captions = read_lists(annotations, "images", "annotations")
    contents = Contents(images, [annotations])
    files: dict[Any, str] = {}
    for i, picture in enumerate(pictures):
        where = f"{annotations}: images[{i}]"
        number, name = value_of(picture, "id", (int, str), where), value_of(picture, "file_name", str, where)
        within_folder(images, name, where)
        if number in files:
            contents.problems.append(Problem(f"image {number} ({name})", "duplicate image id"))
        else:
            files[number] = name
    texts: dict[Any, list[object]] = {number: [] for number in files}
    seen = set()
    for i, caption in enumerate(captions):
        where = f"{annotations}: annotations[{i}]"
        number, image = value_of(caption, "id", (int, str), where), value_of(caption, "image_id", (int, str), where)
        if number in seen:
            contents.problems.append(Problem(f"caption {number}", "duplicate caption id"))
        elif image not in texts:
            contents.problems.append(Problem(f"caption {number}", f"unknown image id {image}"))
        else:
            texts[image].append(caption.get("caption"))
        seen.add(number)
    taken: set[str] = set()
    for number, name in files.items():
        item = f"image {number} ({name})"
        _add(contents, taken, item, name, split, texts[number], str(annotations))
    return contents


def read_karpathy(annotations: Path, images: Path, splits: list[str], restval: bool = True) -> Contents:
    """Images and captions of a `dataset_*.json`, in its order.

    Args:
        annotations: the file; `images` have `filename`, maybe `filepath`, `split`, and `sentences` with `raw`.
        images: the folder that `filepath` (COCO: val2014, train2014) starts in.
        splits: of train, val, test.
        restval: whether the images of the split `restval` are part of train, as is usual for COCO.

    Raises:
        ConfigError: a file or folder is missing, an unknown split.
        DataError: not a file of this format; a name that leaves the folder; nothing in one of the splits.
    """
    for split in splits:
        one_of("--split", split, KARPATHY_SPLITS)
    existing_folder(images, "--images")
    (pictures,) = read_lists(annotations, "images")
    contents = Contents(images, [annotations])
    taken: set[str] = set()
    found: set[str] = set()
    for i, picture in enumerate(pictures):
        where = f"{annotations}: images[{i}]"
        split = value_of(picture, "split", str, where)
        if split not in (*KARPATHY_SPLITS, "restval"):
            raise DataError(f"{where}: unknown split {split[:40]!r} (known: {', '.join(KARPATHY_SPLITS)}, restval)")
        if split == "restval" and restval:
            split = "train"
        found.add(split)
        if split not in splits:
            continue
        name = value_of(picture, "filename", str, where)
        folder = value_of(picture, "filepath", str, where) if picture.get("filepath") is not None else ""
        name = f"{folder}/{name}" if folder else name
        sentences = value_of(picture, "sentences", list, where)
        texts = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
        _add(contents, taken, f"image {name}", name, split, texts, where)
    if missing := [split for split in splits if split not in found]:
        raise DataError(
            f"{annotations}: no images of the split {', '.join(missing)} (it has {', '.join(sorted(found)) or 'none'});"
            " choose with --split"
        )
    return contents


def _add(
    contents: Contents,
    taken: set[str],
    item: str,
    name: str,
    split: str,
    texts: list[object],
    where: str,
) -> None:
    place = within_folder(contents.images, name, where)
    if place in taken:
        contents.problems.append(Problem(item, "this file is listed twice"))
        return
    taken.add(place)
    if captions := clean_captions(texts, item, contents.problems):
        contents.items.append(Item(place, split, captions))
