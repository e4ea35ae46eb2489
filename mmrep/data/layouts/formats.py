"""The formats of `mmrep data pack`: their options and their readers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmrep.data.layouts.classes import read_folder, read_imagenet_val
from mmrep.data.layouts.coco import KARPATHY_SPLITS, read_coco, read_karpathy
from mmrep.data.layouts.contents import Contents
from mmrep.data.layouts.redcaps import read_redcaps
from mmrep.data.layouts.tables import read_table

Option = tuple[str, dict[str, Any]]


class Format(NamedTuple):
    """A format.

    Attributes:
        summary: what it is, in a line.
        read: takes the options' values by name.
        options: names and what argparse is told of them.
        shuffle: seed of the order unless the user says otherwise; None keeps the source's order.
    """

    summary: str
    read: Callable[..., Contents]
    options: list[Option]
    shuffle: int | None = None


def _split(default: str) -> Option:
    text = f"name of the split (default {default}); all but train get CLIP_benchmark's layout"
    return "--split", {"default": default, "help": text}


_IMAGES: Option = ("--images", {"type": Path, "required": True, "help": "folder that the image names start in"})
_ANNOTATIONS: Option = ("--annotations", {"type": Path, "required": True, "help": "JSON file"})
_TEMPLATES: Option = ("--templates", {"help": "file of templates with {c}, or imagenet for OpenAI's 80"})

FORMATS: dict[str, Format] = {
    "coco": Format("COCO's captions_*.json and an image folder", read_coco, [_ANNOTATIONS, _IMAGES, _split("train")]),
    "karpathy": Format(
        "Karpathy's dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json",
        lambda split, **options: read_karpathy(splits=split, **options),
        [
            _ANNOTATIONS,
            _IMAGES,
            ("--split", {"nargs": "+", "default": list(KARPATHY_SPLITS), "help": "of train, val, test (default: all)"}),
            (
                "--restval",
                {"action": argparse.BooleanOptionalAction, "default": True, "help": "restval is part of train"},
            ),
        ],
    ),
    "csv": Format(
        "CSV or TSV with a column of image paths and one of captions",
        read_table,
        [
            ("--table", {"type": Path, "required": True, "help": "file with a header"}),
            _IMAGES,
            _split("train"),
            ("--image_column", {"default": "filepath", "help": "default: filepath"}),
            ("--caption_column", {"default": "title", "help": "default: title"}),
            ("--sep", {"dest": "separator", "help": "one character, tab or comma (default: what the header has)"}),
        ],
    ),
    "redcaps": Format(
        "RedCaps: annotation files, images as {subreddit}/{image_id}.jpg",
        read_redcaps,
        [
            ("--annotations", {"type": Path, "nargs": "+", "required": True, "help": "JSON files, or folders of them"}),
            _IMAGES,
            _split("train"),
            ("--caption_field", {"default": "caption", "help": "caption (default) or raw_caption"}),
        ],
    ),
    "folder": Format(
        "a folder of images for each class",
        read_folder,
        [
            _IMAGES,
            _split("train"),
            ("--classnames", {"help": "file of lines `FOLDER NAME`, or imagenet for wnids (default: folder names)"}),
            _TEMPLATES,
        ],
        # In the order of the folders a shard would hold one class, and readers that stream would see it alone.
        shuffle=0,
    ),
    "imagenet-val": Format(
        "flat ILSVRC2012_val_*.JPEG and a class map; labels count the sorted wnids, as in timm and torchvision",
        read_imagenet_val,
        [
            _IMAGES,
            ("--labels", {"type": Path, "required": True, "help": "NAME LABEL, NAME WNID, or the devkit's truth"}),
            ("--devkit_meta", {"type": Path, "help": "the devkit's meta.mat: its numbers are in no sorted order"}),
            _split("test"),
            ("--classnames", {"help": "file of names in the order of labels (default: open_clip's)"}),
            _TEMPLATES,
        ],
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The formats as subcommands, each with its own options and those that all share.

    `read_contents` takes what was parsed.
    """
    formats: Any = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name, layout in FORMATS.items():
        sub = formats.add_parser(name, help=layout.summary, description=layout.summary)
        for flag, about in layout.options:
            sub.add_argument(flag, **about)
        sub.add_argument("--output_dir", type=Path, required=True, help="a folder that does not exist yet")
        sub.add_argument("--samples_per_shard", type=int, default=10_000, help="default: 10000")
        sub.add_argument("--max_shard_mb", type=float, default=1000.0, help="default: 1000")
        order = "the source's order" if layout.shuffle is None else f"{layout.shuffle}"
        sub.add_argument("--shuffle", type=_seed, default=layout.shuffle, metavar="SEED|none", help=f"default: {order}")
        allowed = "problems that may be skipped: a number, or a share such as 0.05 (default: 0)"
        sub.add_argument("--allow_missing", type=_number_or_share, default=0, metavar="N|SHARE", help=allowed)


def read_contents(args: argparse.Namespace) -> Contents:
    """Reads what the parsed arguments name."""
    layout = FORMATS[args.format]
    names = [about.get("dest", flag.removeprefix("--")) for flag, about in layout.options]
    return layout.read(**{name: getattr(args, name) for name in names})


def _seed(text: str) -> int | None:
    return None if text == "none" else int(text)


def _number_or_share(text: str) -> int | float:
    return float(text) if "." in text else int(text)
