"""Formats of `mmrep data pack`: their options and their readers."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmrep.data.layouts.captions import KARPATHY_SPLITS, read_coco, read_karpathy, read_redcaps, read_table
from mmrep.data.layouts.classes import read_folder, read_imagenet_val
from mmrep.data.layouts.contents import Contents

Option = tuple[str, dict[str, Any]]


class Format(NamedTuple):
    """A format of `mmrep data pack`.

    Attributes:
        summary: one line of help.
        read: the reader, called with the values of `options` by name.
        options: flags and their arguments for argparse.
        shuffle: default seed of the samples' order; None keeps the order of the source.
    """

    summary: str
    read: Callable[..., Contents]
    options: list[Option]
    shuffle: int | None = None


def _split(default: str) -> Option:
    text = f"name of the split (default: {default}); any split but train gets CLIP_benchmark's layout"
    return "--split", {"default": default, "help": text}


_IMAGES: Option = ("--images", {"type": Path, "required": True, "help": "folder that the image names are relative to"})
_ANNOTATIONS: Option = ("--annotations", {"type": Path, "required": True, "help": "JSON file"})
_TEMPLATES: Option = ("--templates", {"help": "file of templates with {c}, or imagenet for OpenAI's 80 templates"})

FORMATS: dict[str, Format] = {
    "coco": Format("COCO's captions_*.json and an image folder", read_coco, [_ANNOTATIONS, _IMAGES, _split("train")]),
    "karpathy": Format(
        "Karpathy's dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json",
        lambda split, **options: read_karpathy(splits=split, **options),
        [
            _ANNOTATIONS,
            _IMAGES,
            (
                "--split",
                {"nargs": "+", "default": list(KARPATHY_SPLITS), "help": "some of train, val, test (default: all)"},
            ),
            (
                "--restval",
                {"action": argparse.BooleanOptionalAction, "default": True, "help": "add the split restval to train"},
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
            ("--sep", {"dest": "separator", "help": "one character, tab or comma (default: the one in the header)"}),
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
        # In the order of the folders, a shard would hold images of one class only.
        shuffle=0,
    ),
    "imagenet-val": Format(
        "flat ILSVRC2012_val_*.JPEG and a class map; labels count the sorted wnids, as in timm and torchvision",
        read_imagenet_val,
        [
            _IMAGES,
            ("--labels", {"type": Path, "required": True, "help": "NAME LABEL, NAME WNID, or the devkit's truth"}),
            ("--devkit_meta", {"type": Path, "help": "the devkit's meta.mat, needed if --labels is its ground truth"}),
            _split("test"),
            ("--classnames", {"help": "file of names in the order of labels (default: open_clip's names)"}),
            _TEMPLATES,
        ],
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the formats as subcommands, each with its own options and the shared ones; `read_contents` reads them."""
    formats: Any = parser.add_subparsers(dest="format", metavar="FORMAT", required=True)
    for name, layout in FORMATS.items():
        sub = formats.add_parser(name, help=layout.summary, description=layout.summary)
        for flag, about in layout.options:
            sub.add_argument(flag, **about)
        sub.add_argument("--output_dir", type=Path, required=True, help="folder to write; it must not exist yet")
        sub.add_argument(
            "--samples_per_shard", type=int, default=10_000, help="most samples of a shard (default: 10000)"
        )
        sub.add_argument("--max_shard_mb", type=float, default=1000.0, help="most megabytes of a shard (default: 1000)")
        order = "that of the source" if layout.shuffle is None else f"seed {layout.shuffle}"
        sub.add_argument(
            "--shuffle",
            type=_seed,
            default=layout.shuffle,
            metavar="SEED|none",
            help=f"order of the samples (default: {order})",
        )
        allowed = "most problems that may be skipped: a number, or a share such as 0.05 (default: 0)"
        sub.add_argument("--allow_missing", type=_number_or_share, default=0, metavar="N|SHARE", help=allowed)


def read_contents(args: argparse.Namespace) -> Contents:
    """Read the set that the parsed arguments name."""
    layout = FORMATS[args.format]
    names = [about.get("dest", flag.removeprefix("--")) for flag, about in layout.options]
    return layout.read(**{name: getattr(args, name) for name in names})


def _seed(text: str) -> int | None:
    return None if text == "none" else int(text)


def _number_or_share(text: str) -> int | float:
    return float(text) if "." in text else int(text)
