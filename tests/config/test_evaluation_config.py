"""Options of evaluation sets: what is refused, in words that name the set; the suites that come with mmrep."""

from pathlib import Path
from typing import Any

import pytest

from mmrep.cli.parsing import parse
from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig

SUITES = sorted((Path(__file__).parents[2] / "eval/suites").glob("*.yaml"))
HUB = "https://hub.example/datasets/clip-benchmark/wds_x"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suites_parse(path: Path) -> None:
    sets = parse(EvaluationConfig, "eval", ["--config", str(path)]).sets
    names = [each.result_name for each in sets]
    assert names and len(set(names)) == len(names)
    head = path.read_text().split("sets:")[0]
    assert f"--suite eval/suites/{path.name}" in head and all(line.startswith("#") for line in head.split("\n") if line)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": ""}, "needs a path"),
        ({"path": "s3://me:secret@bucket/x"}, "a password in an address"),
        ({"path": "pipe:ls"}, "pipe: runs a shell"),
        ({"path": f"{HUB}/tree/main"}, r"a page of the Hub, .*; write hf://datasets/clip-benchmark/wds_x$"),
        ({"path": f"{HUB}/tree/v2/sub/"}, r"write hf://datasets/clip-benchmark/wds_x@v2/sub$"),
        ({"task": "zeroshoot"}, "unknown value 'zeroshoot'; did you mean 'zeroshot'"),
        ({"task": []}, "expected at least one"),
        ({"name": "a/b"}, "no '/' allowed"),
        ({"split": ""}, "split: expected a name"),
        ({"train_split": ""}, "train_split: expected a name"),
        ({"captions_per_image": 0}, "set x: captions_per_image: expected a value ≥ 1"),
        ({"format": "coco"}, "set x: format coco needs `images`"),
        ({"format": "imagenet-val"}, "set x: format imagenet-val needs `labels`"),
        ({"images": "i"}, r"set x: `images` is not read with format webdataset \(but with coco, karpathy, csv\)"),
        ({"format": "folder", "labels": "l"}, "set x: `labels` is not read with format folder"),
        ({"format": "csv", "images": "i", "classnames": "c"}, "`classnames` is not read with format csv"),
        (
            {"format": "csv", "images": "i", "split": "train"},
            "set x: format csv has no split 'train'; a train",
        ),
    ],
)
def test_sets(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        SetConfig(**({"path": "x"} | fields))
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SetConfig("data/cifar10/"), "cifar10"),
        (SetConfig("data/cifar10", name="mine"), "mine"),
        (SetConfig("scenes:captions"), "captions"),
        (SetConfig("hf://datasets/clip-benchmark/wds_cifar10/"), "wds_cifar10"),
        (SetConfig("data/dataset_coco.json", format="karpathy", images="data"), "dataset_coco"),
        (SetConfig("data/imagenet.v2", format="folder"), "imagenet.v2"),
    ],
)
def test_names_in_results(config: SetConfig, name: str) -> None:
    assert config.result_name == name


@pytest.mark.parametrize("split", ["test/", "./test", ".//test", "train/../test"])
def test_a_split_has_one_spelling(split: str) -> None:
    config = SetConfig("x", split=split, train_split=split)
    assert config == SetConfig("x", split="test", train_split="test")
    assert SetConfig("x", format="folder", split="./").split == "."
