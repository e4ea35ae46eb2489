"""RedCaps: annotation files by subreddit and year, images as its downloader stores them."""

from pathlib import Path

from mmrep.config.checks import ConfigError, one_of
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

CAPTION_FIELDS = ("caption", "raw_caption")
_KEPT = ("image_id", "subreddit", "url", "score", "created_utc")
"""Not the author's name: personal, and of no use in training."""


def read_redcaps(annotations: list[Path], images: Path, split: str, caption_field: str = "caption") -> Contents:
    """Images and captions of annotation files, in their order.

    Args:
        annotations: files, or folders of `*.json`.
        images: the folder with `{subreddit}/{image_id}.jpg`.
        split: what to call the split.
        caption_field: `caption` (cleaned by the makers of RedCaps) or `raw_caption`.

    Raises:
        ConfigError: a file or folder is missing.
        DataError: not a file of this format; a name that leaves the folder.
    """
    one_of("--caption_field", caption_field, CAPTION_FIELDS)
    existing_folder(images, "--images")
    files = [file for path in annotations for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]
    if not files:
        raise ConfigError(f"--annotations: no *.json in {', '.join(map(str, annotations))}")
    contents = Contents(images, files)
    seen: set[str] = set()
    for file in files:
        (entries,) = read_lists(file, "annotations")
        for i, entry in enumerate(entries):
            where = f"{file}: annotations[{i}]"
            number, subreddit = (value_of(entry, name, str, where) for name in ("image_id", "subreddit"))
            place = within_folder(images, f"{subreddit}/{number}.jpg", where)
            item = f"image {number} ({place})"
            if number in seen:
                contents.problems.append(Problem(item, "duplicate image id"))
                continue
            seen.add(number)
            if captions := clean_captions([entry.get(caption_field)], item, contents.problems):
                record = {name: entry[name] for name in _KEPT if name in entry}
                contents.items.append(Item(place, split, captions, record=record))
    return contents
