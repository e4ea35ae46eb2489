"""Small sets in the exact format of the originals, for the tests of packing."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import write_tar
from PIL import Image
from scipy.io import savemat

WNIDS = ("n01440764", "n01443537", "n01484850")
"""The first three of ImageNet: tench, goldfish, great white shark."""


def picture(shade: int, kind: str = "JPEG") -> bytes:
    """An image file, another one for each shade."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (shade % 256, 40, 90)).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | dict[str, Any]) -> Path:
    """Writes a file, its folders too; a dict as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def coco(annotations: Path, images: Path, count: int, start: int = 0) -> None:
    """COCO: images, then captions of all images mixed, some with a line end in them."""
    names = {1000 + start + i: f"{start + i:012d}.jpg" for i in range(count)}
    for i, name in enumerate(names.values()):
        put(images / name, picture(start + i))
    content = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
        "images": [
            {"license": 4, "file_name": name, "coco_url": "", "height": 16, "width": 20, "id": number}
            for number, name in names.items()
        ],
        "annotations": [
            {"image_id": number, "id": 10 * number + turn, "caption": f"caption {turn} of \n image {number}.\n"}
            for turn in range(2)
            for number in names
        ],
    }
    put(annotations, content)


def karpathy(annotations: Path, images: Path, dataset: str) -> None:
    """Karpathy's file: COCO's entries have a `filepath` and a `cocoid`, and some are in `restval`."""
    entries = []
    splits = ["train", "restval", "val", "test"] if dataset == "coco" else ["train", "val", "test"]
    for i, split in enumerate(splits * 2):
        folder = (
            {"filepath": "train2014" if split == "train" else "val2014", "cocoid": 7 * i} if dataset == "coco" else {}
        )
        sentences = [
            {
                "tokens": ["a", "dog"],
                "raw": f"A {split} dog, number {i}, way {turn}.",
                "imgid": i,
                "sentid": 5 * i + turn,
            }
            for turn in range(5)
        ]
        entry = {"sentids": [5 * i + turn for turn in range(5)], "imgid": i, "sentences": sentences, "split": split}
        entries.append({**folder, **entry, "filename": f"{i:06d}.jpg"})
        put(images / folder.get("filepath", "") / f"{i:06d}.jpg", picture(i))
    put(annotations, {"images": entries, "dataset": dataset})


def redcaps(root: Path) -> None:
    """RedCaps: two annotation files; of the four images one is gone."""
    for k, subreddit in enumerate(("abandoned", "birdpics")):
        entries = [
            {
                "image_id": f"{subreddit[0]}{i}x",
                "author": "somebody",
                "url": f"https://i.redd.it/{i}.jpg",
                "raw_caption": f"A {subreddit} PIC {i} (OC)",
                "caption": f"a {subreddit} pic {i}",
                "subreddit": k,
                "score": 5,
                "created_utc": 1490000000,
                "permalink": f"/r/{subreddit}/comments/{i}",
                "crosspost_parents": None,
            }
            | {"subreddit": subreddit}
            for i in range(2)
        ]
        put(root / f"annotations/{subreddit}_2017.json", {"info": {"version": "1.0"}, "annotations": entries})
        for entry in entries[k:]:
            put(root / f"images/{subreddit}/{entry['image_id']}.jpg", picture(k))


def class_folders(root: Path) -> None:
    """Two classes, a train and a test part; names as ImageFolder meets them, and a file of class names."""
    for split, count in (("train", 6), ("test", 3)):
        for k, name in enumerate(("n02085620", "cat")):
            for i in range(count):
                put(root / split / name / f"{name}_{i}.JPEG", picture(10 * k + i))
    put(root / "names.txt", "cat house cat\nn02085620 Chihuahua, a dog\n")


def imagenet_val(images: Path, labels: Path, devkit: Path) -> None:
    """Five validation images; the devkit numbers the three classes in another order than that of the wnids."""
    truth = [2, 0, 1, 2, 0]
    numbers = {0: 449, 1: 450, 2: 442}
    for i, label in enumerate(truth, 1):
        put(images / f"ILSVRC2012_val_{i:08d}.JPEG", picture(label))
    put(labels, "".join(f"ILSVRC2012_val_{i:08d}.JPEG {label}\n" for i, label in enumerate(truth, 1)))
    put(devkit / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{numbers[label]}\n" for label in truth))
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    synsets = np.empty(len(WNIDS) + 1, dtype=[(name, object) for name in fields])
    rows = [(numbers[label], wnid, "words", "gloss", 0) for label, wnid in enumerate(WNIDS)]
    for i, row in enumerate(sorted(rows)):
        synsets[i] = row
    synsets[-1] = (1001, "n00001740", "entity", "an inner node of the tree", 3)
    savemat(devkit / "meta.mat", {"synsets": synsets})


def downloaded(root: Path, uids: list[str]) -> None:
    """What img2dataset leaves: two shards of two samples of five rows each, and their statistics."""
    for shard in range(2):
        samples = []
        for i in range(2):
            key = f"{shard:05d}{i:04d}"
            record = {
                "caption": f"caption {key}",
                "url": f"https://example.org/{key}",
                "uid": uids[2 * shard + i],
                "key": key,
                "status": "success",
                "error_message": None,
                "width": 20,
                "height": 16,
                "original_width": 20,
                "original_height": 16,
                "exif": "{}",
                "sha256": "0" * 64,
            }
            members = {
                "jpg": picture(i),
                "json": json.dumps(record, indent=4).encode(),
                "txt": record["caption"].encode(),
            }
            samples.append((key, members))
        write_tar(root / f"{shard:05d}.tar", samples)
        status = {"success": 2, "HTTP Error 404: Not Found": 2, "image decoding error": 1}
        stats = {"count": 5, "successes": 2, "failed_to_download": 2, "failed_to_resize": 1, "duration": 1.5}
        put(root / f"{shard:05d}_stats.json", stats | {"start_time": 1.0, "end_time": 2.5, "status_dict": status})
