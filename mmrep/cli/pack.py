"""`mmrep data pack FORMAT`: a dataclass for each format."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrep.cli.parsing import Verb
from mmrep.cli.terminal import say
from mmrep.config.shards import PackSpec

if TYPE_CHECKING:
    from mmrep.data.layouts.contents import Contents


@dataclass(frozen=True, kw_only=True)
class _Format(PackSpec):
    """Options of all formats.

    Attributes:
        output_dir: Folder to write. It must not exist yet.
        images: Folder that the image names are relative to.
    """

    output_dir: str
    images: str

    def read(self) -> "Contents":
        """Read what is to be packed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Coco(_Format):
    """Pack COCO's captions_*.json and an image folder.

    Attributes:
        annotations: The JSON file.
        split: Name of the split. Any split but train gets CLIP_benchmark's layout.
    """

    annotations: str
    split: str = "train"

    def read(self) -> "Contents":
        from mmrep.data.layouts.captions import read_coco

        return read_coco(Path(self.annotations), Path(self.images), self.split)


@dataclass(frozen=True, kw_only=True)
class Karpathy(_Format):
    """Pack Karpathy's dataset_coco.json, dataset_flickr30k.json or dataset_flickr8k.json.

    Attributes:
        annotations: The JSON file.
        split: Some of train, val, test.
        restval: Add the split restval to train.
    """

    annotations: str
    split: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    restval: bool = True

    def read(self) -> "Contents":
        from mmrep.data.layouts.captions import read_karpathy

        return read_karpathy(Path(self.annotations), Path(self.images), self.split, self.restval)


@dataclass(frozen=True, kw_only=True)
class Table(_Format):
    """Pack a CSV or TSV file with a column of image paths and one of captions.

    Attributes:
        table: The file. It has a header.
        split: Name of the split. Any split but train gets CLIP_benchmark's layout.
        image_column: Column of image paths.
        caption_column: Column of captions.
        sep: Separator: one character, tab or comma. By default the one in the header.
    """

    table: str
    split: str = "train"
    image_column: str = "filepath"
    caption_column: str = "title"
    sep: str | None = None

    def read(self) -> "Contents":
        from mmrep.data.layouts.captions import read_table

        columns = self.image_column, self.caption_column
        return read_table(Path(self.table), Path(self.images), self.split, *columns, self.sep)


@dataclass(frozen=True, kw_only=True)
class RedCaps(_Format):
    """Pack RedCaps: annotation files, and images as {subreddit}/{image_id}.jpg.

    Attributes:
        annotations: JSON files, or folders of them.
        split: Name of the split. Any split but train gets CLIP_benchmark's layout.
        caption_field: The captions to take.
    """

    annotations: list[str]
    split: str = "train"
    caption_field: Literal["caption", "raw_caption"] = "caption"

    def read(self) -> "Contents":
        from mmrep.data.layouts.captions import read_redcaps

        return read_redcaps(
            [Path(each) for each in self.annotations], Path(self.images), self.split, self.caption_field
        )


@dataclass(frozen=True, kw_only=True)
class Folder(_Format):
    """Pack a folder of images for each class.

    Attributes:
        split: Name of the split. Any split but train gets CLIP_benchmark's layout.
        classnames: File of lines `FOLDER NAME`, or imagenet for wnids. By default the names of the folders.
        templates: File of templates with {c}, or imagenet for OpenAI's 80 templates.
    """

    split: str = "train"
    classnames: str | None = None
    templates: str | None = None
    # In the order of the folders, a shard would hold images of one class only.
    shuffle: int | None = 0

    def read(self) -> "Contents":
        from mmrep.data.layouts.classes import read_folder

        return read_folder(Path(self.images), self.split, self.classnames, self.templates)


@dataclass(frozen=True, kw_only=True)
class ImagenetVal(_Format):
    """Pack a flat folder of ILSVRC2012_val_*.JPEG with a class map. Labels count the sorted wnids, as in timm and
    torchvision.

    Attributes:
        labels: File of lines NAME LABEL or NAME WNID, or the devkit's ground truth.
        devkit_meta: The devkit's meta.mat, needed with its ground truth.
        split: Name of the split. Any split but train gets CLIP_benchmark's layout.
        classnames: File of names in the order of labels. By default open_clip's names.
        templates: File of templates with {c}, or imagenet for OpenAI's 80 templates.
    """

    labels: str
    devkit_meta: str | None = None
    split: str = "test"
    classnames: str | None = None
    templates: str | None = None

    def read(self) -> "Contents":
        from mmrep.data.layouts.classes import read_imagenet_val

        meta = Path(self.devkit_meta) if self.devkit_meta else None
        names = self.classnames, self.templates
        return read_imagenet_val(Path(self.images), Path(self.labels), self.split, *names, meta)


def run(options: _Format, _: list[str]) -> None:
    """Pack a set."""
    from tqdm import tqdm

    from mmrep.data.pack import pack

    spec = PackSpec(**{each.name: getattr(options, each.name) for each in dataclasses.fields(PackSpec)})
    with tqdm(unit="image", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(stage: str, done: int, total: int) -> None:
            if done == 1:
                bar.reset(total)
                bar.set_description(stage)
            bar.update(done - bar.n)

        pack(options.read, Path(options.output_dir), spec, show)
    say(f"written: {options.output_dir}")


def _none_is_null(argv: list[str]) -> list[str]:
    """Return the words with `--shuffle null` for `--shuffle none`."""
    pairs = zip(["", *argv], argv, strict=False)
    return ["null" if (before, word) == ("--shuffle", "none") else word for before, word in pairs]


def _verb(options: type[Any], example: str) -> Verb:
    typed: Callable[[Any, list[str]], None] = run
    return Verb(options, typed, examples=(f"mmrep data pack {example}",), prepare=_none_is_null)


FORMATS = {
    "coco": _verb(Coco, "coco --annotations captions_train2017.json --images train2017 --output_dir data/coco"),
    "karpathy": _verb(
        Karpathy, "karpathy --annotations dataset_coco.json --images coco --output_dir data/coco_karpathy"
    ),
    "csv": _verb(Table, "csv --table pairs.csv --images photos --output_dir data/pairs"),
    "redcaps": _verb(RedCaps, "redcaps --annotations annotations --images images --output_dir data/redcaps"),
    "folder": _verb(Folder, "folder --images photos --output_dir data/classes"),
    "imagenet-val": _verb(ImagenetVal, "imagenet-val --images val --labels labels.txt --output_dir data/imagenet"),
}
