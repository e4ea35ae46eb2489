"""Packing: every recipe of docs/data.md on a small set; bytes kept and reproduced; nothing lost, nothing half-made."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import originals
import pytest
from originals import picture, put

from mmrep.cli import find_verb, main
from mmrep.cli.pack import FORMATS
from mmrep.cli.parsing import parse
from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import SetConfig
from mmrep.config.shards import PackSpec
from mmrep.config.tree import TrainConfig
from mmrep.data.decode import read_image
from mmrep.data.indexing import load_index
from mmrep.data.layouts.contents import Contents, Item
from mmrep.data.pack import pack, sample_keys
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.evaluation.sets import open_set

ROOT = Path(__file__).parents[2]
UIDS = [f"{i:016x}{7 - i:016x}" for i in range(4)]


def recipe_commands(page: str = "data.md") -> dict[str, list[str]]:
    """The mmrep commands of each section of a page of the docs."""
    sections = re.split(r"^##? ", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    blocks = {
        text.partition("\n")[0]: re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for text in sections
    }
    commands = {title: [line for block in found for line in block.splitlines()] for title, found in blocks.items()}
    mine = {title: [line for line in lines if line.startswith("mmrep ")] for title, lines in commands.items()}
    return {title: lines for title, lines in mine.items() if lines}


def train_config(argv: list[str]) -> TrainConfig:
    """The config of a command `mmrep train`, which may name the config file of a study."""
    verb = find_verb("train")
    config = parse(verb.kind(argv), "train", verb.prepare(argv), verb.positional)
    assert isinstance(config, TrainConfig)
    return config


def lay_out(data: Path) -> None:
    """Every set that the docs' commands name."""
    originals.downloaded(data / "cc3m", UIDS)
    originals.downloaded(data / "datacomp/shards", UIDS)
    subset = np.array([(int(uid[:16], 16), int(uid[16:], 16)) for uid in UIDS[1:3]], dtype=np.dtype("u8,u8"))
    np.save(data / "datacomp/basic.npy", subset)
    originals.redcaps(data / "redcaps")
    originals.coco(data / "coco/annotations/captions_train2017.json", data / "coco/train2017", 6)
    originals.coco(data / "coco/annotations/captions_val2017.json", data / "coco/val2017", 3, start=100)
    originals.karpathy(data / "karpathy/dataset_coco.json", data / "coco2014", "coco")
    originals.karpathy(data / "karpathy/dataset_flickr30k.json", data / "flickr30k-images", "flickr30k")
    for i in range(4):
        put(data / f"pairs/images/{i}.jpg", picture(i))
    rows = [(f"images/{i % 4}.jpg", f"row {i}, with a comma") for i in range(6)]
    put(data / "pairs/train.csv", "filepath,title\n" + "".join(f'{path},"{text}"\n' for path, text in rows))
    put(data / "pairs/train.tsv", "image\ttext\n" + "".join(f"{path}\t{text}\n" for path, text in rows))
    originals.class_folders(data / "pets")
    for wnid in originals.WNIDS:
        put(data / f"imagenet/train/{wnid}/{wnid}_1.JPEG", picture(3))
    originals.imagenet_val(data / "imagenet/val", data / "imagenet/val.txt", data / "devkit/data")


def read_shards(folder: Path) -> dict[str, dict[str, bytes]]:
    """Every member of every sample of a split, by key."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None, "shards hold files only"
                samples.setdefault(key, {})[extension] = file.read()
    return samples


def texts(folder: Path) -> dict[str, list[str]]:
    return {key: members["txt"].decode().split("\n") for key, members in read_shards(folder).items()}


def labels(folder: Path) -> dict[str, int]:
    return {key: int(members["cls"]) for key, members in read_shards(folder).items()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all packing commands of the docs have run, and all training configs were opened."""
    root = tmp_path_factory.mktemp("recipes")
    lay_out(root / "data")
    (root / "configs").symlink_to(ROOT / "configs")
    before = Path.cwd()
    os.chdir(root)
    try:
        for commands in recipe_commands().values():
            for command in commands:
                verb, *rest = shlex.split(command)[1:]
                if verb == "train":
                    sources = Sources(train_config(rest).data)
                    for number in range(len(sources)):
                        place = sources.sample(number)
                        assert read_image(place.shard, place.row).shape in ((3, 16, 20), (3, 32, 32)), command
                else:
                    assert main([verb, *rest]) == 0, command
    finally:
        os.chdir(before)
    return root / "data"


def test_every_format_has_a_recipe() -> None:
    commands = [line for lines in recipe_commands().values() for line in lines]
    packed = {words[3] for words in map(shlex.split, commands) if words[1:3] == ["data", "pack"]}
    assert packed == set(FORMATS)
    assert (
        sum("--data.train.shards" in command for command in commands) == len(recipe_commands()) - 1
    )  # not ImageNet val


def test_the_example_of_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    (commands,) = recipe_commands("loader.md").values()
    scenes, index, train, ledger = (shlex.split(command)[1:] for command in commands)
    assert main(scenes) == main(index) == 0
    config = train_config(train[1:])
    sources = Sources(config.data)
    assert len(sources) + sources.describe()["held_out"] == 512 and config.data.ledger
    assert ledger == ["data", "ledger", config.output_dir]


def test_coco(recipes: Path) -> None:
    assert texts(recipes / "coco_train/train")["000000000004"] == [
        "caption 0 of image 1004.",
        "caption 1 of image 1004.",
    ]
    assert [path.name for path in (recipes / "coco_train/train").iterdir()] == ["000000.tar"]
    assert list(texts(recipes / "coco_val/test")) == [f"{i:012d}" for i in range(100, 103)]
    opened = open_set(SetConfig(str(recipes / "coco_val")))
    assert opened.task == "retrieval" and len(opened.records) == 3
    assert opened.records.texts(1) == ["caption 0 of image 1101.", "caption 1 of image 1101."]
    original = (recipes / "coco/val2017/000000000101.jpg").read_bytes()
    assert read_shards(recipes / "coco_val/test")["000000000101"]["jpg"] == original


def test_karpathy(recipes: Path) -> None:
    report = json.loads((recipes / "coco_karpathy/pack.json").read_text())
    assert {name: part["samples"] for name, part in report["splits"].items()} == {"test": 2, "train": 4, "val": 2}
    train = texts(recipes / "coco_karpathy/train")
    assert list(train) == ["000000", "000001", "000004", "000005"]
    assert train["000001"] == [f"A restval dog, number 1, way {turn}." for turn in range(5)]
    assert (
        list(texts(recipes / "flickr30k/test")) == ["000002", "000005"] and not (recipes / "flickr30k/train").exists()
    )
    assert open_set(SetConfig(str(recipes / "coco_karpathy"), split="val")).task == "retrieval"


def test_csv(recipes: Path) -> None:
    expected = {str(i): [f"row {j}, with a comma" for j in range(i, 6, 4)] for i in range(4)}
    assert texts(recipes / "pairs_packed/train") == texts(recipes / "pairs_tsv/train") == expected


def test_redcaps(recipes: Path) -> None:
    samples = read_shards(recipes / "redcaps_packed/train")
    assert {key: members["txt"] for key, members in samples.items()} == {
        "a0x": b"a abandoned pic 0", "a1x": b"a abandoned pic 1", "b1x": b"a birdpics pic 1"
    }  # fmt: skip
    record = json.loads(samples["b1x"]["json"])
    assert record["subreddit"] == "birdpics" and "author" not in record and "raw_caption" not in record
    report = json.loads((recipes / "redcaps_packed/pack.json").read_text())
    assert report["skipped"] == [{"item": "birdpics/b0x.jpg", "reason": "no such file"}]
    assert [source["file"] for source in report["sources"]] == ["abandoned_2017.json", "birdpics_2017.json"]


def test_folder(recipes: Path) -> None:
    found = labels(recipes / "pets_train/train")
    assert len(found) == 12 and all(label == (key[0] == "n") for key, label in found.items())
    assert list(found) != sorted(found), "class folders are shuffled"
    opened = open_set(SetConfig(str(recipes / "pets_test")))
    assert opened.task == "zeroshot" and opened.classnames == ["house cat", "Chihuahua, a dog"]
    assert opened.templates == ["a photo of a {c}."]
    imagenet = (recipes / "imagenet_train/classnames.txt").read_text().splitlines()
    assert imagenet == ["tench", "goldfish", "great white shark"]
    assert len((recipes / "imagenet_train/zeroshot_classification_templates.txt").read_text().splitlines()) == 80


def test_imagenet_val(recipes: Path) -> None:
    expected = {f"ILSVRC2012_val_{i:08d}": label for i, label in enumerate([2, 0, 1, 2, 0], 1)}
    assert labels(recipes / "imagenet_val/test") == labels(recipes / "imagenet_devkit/test") == expected
    opened = open_set(SetConfig(str(recipes / "imagenet_val")))
    assert (
        len(opened.classnames) == 1000 and opened.classnames[2] == "great white shark" and len(opened.templates) == 80
    )


def test_the_subset_is_selected(recipes: Path) -> None:
    argv = shlex.split(recipe_commands()["DataComp, with a subset"][0])[2:]
    argv = [value.replace("data/", f"{recipes}/", 1) if value.startswith("data/") else value for value in argv]
    argv[argv.index("--config") + 1] = str(ROOT / "configs/vit_b16.yaml")
    sources = Sources(parse(TrainConfig, "train", argv).data)
    keys = [place.shard.keys[place.row] for place in map(sources.sample, range(len(sources)))]
    assert keys == [b"000000001", b"000010000"]


def contents(folder: Path, count: int = 10, split: str = "train") -> Contents:
    found = Contents(folder, [put(folder / "list.txt", "names")])
    for i in range(count):
        kind = ("JPEG", "PNG", "WEBP")[i % 3]
        put(folder / f"{i}.img", picture(i, kind))
        found.items.append(Item(f"{i}.img", split, (f"caption {i}",), label=i, record={"i": i}))
    return found


def test_bytes_are_kept_and_the_extension_follows_them(tmp_path: Path) -> None:
    found = contents(tmp_path)
    pack(lambda: found, tmp_path / "out", PackSpec())
    samples = read_shards(tmp_path / "out/train")
    for i, item in enumerate(found.items):
        kind = ("jpg", "png", "webp")[i % 3]
        others = {"txt": f"caption {i}".encode(), "cls": str(i).encode(), "json": f'{{"i": {i}}}'.encode()}
        assert samples[str(i)] == {kind: (tmp_path / item.name).read_bytes()} | others


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    found = contents(tmp_path)
    for name in ("a", "b"):
        pack(lambda: found, tmp_path / name, PackSpec(shuffle=3, samples_per_shard=4))
        for item in found.items:
            os.utime((tmp_path / item.name), (1, 1))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    with tarfile.open(tmp_path / "a/train/000000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


def test_webdataset_reads_it(tmp_path: Path) -> None:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    found = contents(tmp_path)
    pack(lambda: found, tmp_path / "out", PackSpec(samples_per_shard=4))
    samples = []
    for path in sorted((tmp_path / "out/train").glob("*.tar")):
        with path.open("rb") as file:
            samples += list(group_by_keys(tar_file_expander([{"url": path.name, "stream": file}])))
    assert [sample["__key__"] for sample in samples] == [str(i) for i in range(10)]
    assert [sample["txt"] for sample in samples] == [f"caption {i}".encode() for i in range(10)]
    assert samples[4]["png"] == (tmp_path / "4.img").read_bytes()


def test_identity(tmp_path: Path) -> None:
    """It follows the samples, not their order or shards."""
    found = contents(tmp_path)

    def identity(name: str, **spec: Any) -> str:
        return pack(lambda: found, tmp_path / name, PackSpec(**spec))["identity"]

    first = identity("a")
    assert first == identity("b", shuffle=1, samples_per_shard=3) and len(first) == 32
    item = found.items[4]
    for name, other in {
        "caption": item._replace(captions=("another",)),
        "two": item._replace(captions=("caption 4", "caption 4")),
        "label": item._replace(label=5),
        "key": item._replace(name="40.img"),
        "bytes": item,
    }.items():
        found.items[4] = other
        (tmp_path / "40.img").write_bytes(picture(4, "PNG"))
        if name == "bytes":
            (tmp_path / "4.img").write_bytes(picture(5, "PNG"))
        assert identity(name) != first, name


def test_shards_are_bounded(tmp_path: Path) -> None:
    found = contents(tmp_path, 11, "test")
    report = pack(lambda: found, tmp_path / "count", PackSpec(samples_per_shard=4))
    assert report["splits"] == {"test": {"samples": 11, "shards": 3}}
    assert (tmp_path / "count/test/nshards.txt").read_text() == "3\n"
    assert [len(load_index(tmp_path / f"count/test/{i}.tar")) for i in range(3)] == [4, 4, 3]
    put((tmp_path / "5.img"), picture(5, "PNG") + bytes(40_000))
    pack(lambda: found, tmp_path / "size", PackSpec(max_shard_mb=0.02))
    shards = [tmp_path / f"size/test/{i}.tar" for i in range(int((tmp_path / "size/test/nshards.txt").read_text()))]
    # tarfile rounds a finished file up to 10,240 bytes.
    assert [path.stat().st_size > 30_720 for path in shards].count(True) == 1
    # A sample takes 4,096 bytes here: four are within 20,000 bytes, five are not.
    assert [len(load_index(path)) for path in shards] == [4, 1, 1, 4, 1]


def test_order(tmp_path: Path) -> None:
    found = contents(tmp_path)
    orders = {}
    for seed in (None, 0, 1):
        pack(lambda: found, tmp_path / str(seed), PackSpec(shuffle=seed))
        orders[seed] = list(read_shards(tmp_path / f"{seed}/train"))
    assert orders[None] == [str(i) for i in range(10)]
    assert sorted(orders[0]) == sorted(orders[1]) == orders[None] and orders[0] != orders[1] != orders[None]


def items(*names: str) -> list[Item]:
    return [Item(name, "train") for name in names]


def test_keys() -> None:
    assert sample_keys(items("x/a.jpg", "y/b.c.jpg", "y/d é.png")) == ["a", "b_c", "d_é"]
    assert sample_keys(items("x/1.jpg", "y/1.jpg", "y/2.jpg")) == ["x_1", "y_1", "y_2"]
    assert sample_keys(items("a/x/1.jpg", "a/y/1.jpg")) == ["x_1", "y_1"]
    assert sample_keys(items("a/x/1.jpg", "b/x/1.jpg")) == ["a_x_1", "b_x_1"]
    assert sample_keys(items("a/x_1.jpg", "a_x/1.jpg", "b/x_1.jpg")) == ["000000000", "000000001", "000000002"]
    assert sample_keys(items("bad\udcff.jpg", "v1.2/plain", ".hidden")) == ["bad_", "plain", "_hidden"]


def test_long_and_foreign_names_survive(tmp_path: Path) -> None:
    found = contents(tmp_path, 2)
    names = ["长" * 80, "b" * 150]
    found.items = [item._replace(name=f"{name}.jpg") for item, name in zip(found.items, names, strict=True)]
    for item in found.items:
        put(tmp_path / item.name, picture(1))
    pack(lambda: found, tmp_path / "out", PackSpec())
    assert [key.decode() for key in load_index(tmp_path / "out/train/000000.tar").keys] == names


def test_every_problem_is_named_before_anything_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = contents(tmp_path)
    (tmp_path / "1.img").unlink()
    (tmp_path / "2.img").write_bytes(b"")
    (tmp_path / "3.img").write_bytes(b"<html>gone</html>")
    (tmp_path / "4.img").write_bytes(b"GIF89a" + bytes(20))
    (tmp_path / "5.img").unlink()
    (tmp_path / "5.img").mkdir()
    (tmp_path / "6.img").unlink()
    os.mkfifo(tmp_path / "6.img")
    with pytest.raises(
        DataError, match=r"6 of 10 .* \(1.img: no such file; …\) and 5 may be missing.*--allow_missing 6"
    ):
        pack(lambda: found, tmp_path / "out/set", PackSpec(allow_missing=5))
    assert not (tmp_path / "out").exists()
    expected = ["1.img: no such file", "2.img: empty file", "3.img: not a JPEG, PNG or WebP file",
                "4.img: not a JPEG, PNG or WebP file", "5.img: not a file", "6.img: not a file"]  # fmt: skip
    assert caplog.messages == expected
    with pytest.raises(DataError, match="5 may be missing"):
        pack(lambda: found, tmp_path / "out", PackSpec(allow_missing=0.59))
    for name, allowed in {"number": 6, "share": 0.6}.items():
        report = pack(lambda: found, tmp_path / name, PackSpec(allow_missing=allowed))
        assert [f"{each['item']}: {each['reason']}" for each in report["skipped"]] == expected
        assert report == json.loads((tmp_path / name / "pack.json").read_text())
        assert list(read_shards(tmp_path / name / "train")) == ["0", "7", "8", "9"]
    assert "6 problems skipped" in caplog.messages[-1]


def test_an_image_that_changes_meanwhile(tmp_path: Path) -> None:
    found = contents(tmp_path)

    def spoil(stage: str, done: int, total: int) -> None:
        if stage == "packing" and done == 5:
            (tmp_path / "7.img").write_bytes(picture(1, "PNG")[1:])

    with pytest.raises(DataError, match=r"7.img: changed while packing"):
        pack(lambda: found, tmp_path / "out", PackSpec(), spoil)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_set_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    found = contents(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ConfigError, match="taken exists"):
        pack(lambda: pytest.fail("nothing is read for nothing"), taken, PackSpec())

    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "packing" and done == 5:
            assert not (tmp_path / "out").exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(lambda: found, tmp_path / "out", PackSpec(), interrupt)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["taken"]

    def overtake(stage: str, done: int, total: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(ConfigError, match="meanwhile"):
        pack(lambda: found, tmp_path / "out", PackSpec(), overtake)
    assert not list((tmp_path / "out").iterdir())


def test_ctrl_c(tmp_path: Path) -> None:
    """The signal itself, to the command itself, in the middle of its work."""
    rows = []
    for i in range(300):
        put(tmp_path / f"images/{i}.jpg", picture(i))
        rows.append(f"{i}.jpg,text {i}\n")
    put(tmp_path / "list.csv", "filepath,title\n" + "".join(rows))
    code = """
import sys, time
from mmrep.data import shard_writer
write = shard_writer.ShardWriter.write
def slow(self, *sample):
    write(self, *sample)
    print("wrote", flush=True)
    time.sleep(0.02)
shard_writer.ShardWriter.write = slow
from mmrep.cli import find_verb, main
sys.exit(main(sys.argv[1:]))
"""
    argv = ["data", "pack", "csv", "--table", "list.csv", "--images", "images", "--output_dir", "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "wrote\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and errors.strip().endswith("error: interrupted")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "list.csv"]


def test_memory_does_not_grow_with_the_bytes(tmp_path: Path) -> None:
    """40 images of 2 MB."""
    import tracemalloc

    found = contents(tmp_path, 1)
    found.items = [found.items[0]._replace(name=f"{i}.jpg") for i in range(40)]
    for item in found.items:
        put(tmp_path / item.name, picture(0) + bytes(2_000_000))
    tracemalloc.start()
    try:
        pack(lambda: found, tmp_path / "out", PackSpec(samples_per_shard=15))
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "reason"),
    {
        "no format": ("", "FORMAT"),
        "unknown format": ("cocoa", "format: unknown value 'cocoa'; did you mean 'coco'?"),
        "no images": ("csv --table t.csv", "--images"),
        "no such folder": ("csv --table t.csv --images none", "--images: no such folder: none"),
        "no such table": ("csv --table t.csv --images .", "can't read t.csv"),
        "no such json": ("coco --annotations t.json --images .", "can't read t.json"),
        "share": ("csv --table t.csv --images . --allow_missing 1.5", "--allow_missing: expected a number"),
        "number": ("csv --table t.csv --images . --allow_missing few", "expected int or float, got 'few'"),
        "seed": ("csv --table t.csv --images . --shuffle -1", "--shuffle"),
        "samples": ("csv --table t.csv --images . --samples_per_shard 0", "--samples_per_shard"),
        "split": ("csv --table good.csv --images . --split ../up", "--split: '../up' is not a folder name"),
    }.values(),
)  # fmt: skip
def test_wrong_use(
    options: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "0.jpg", picture(0))
    put(tmp_path / "good.csv", "filepath,title\n0.jpg,text\n")
    assert main(["data", "pack", *shlex.split(options), *(["--output_dir", "out"] if options else [])]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "up").exists()
