"""Evaluation sets: the layout on disk, what is missing from it, and the validation split as sets."""

from pathlib import Path
from typing import Any

import pytest
from conftest import colour_samples, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.config.evaluation import SetConfig
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.evaluation.sets import EvalSet, check_set, open_set, validation_sets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A good set of two shards, to be broken."""
    for shard in range(2):
        write_tar(tmp_path / f"set/test/{shard}.tar", colour_samples(4, 4 * shard))
    (tmp_path / "set/test/nshards.txt").write_text("2\n")
    (tmp_path / "set/classnames.txt").write_text("red\ngreen\nblue\nyellow\n")
    (tmp_path / "set/zeroshot_classification_templates.txt").write_text("a {c}\n")
    return tmp_path / "set"


def test_zeroshot_set(folder: Path) -> None:
    found = open_set(SetConfig(str(folder)))
    assert (found.name, found.task, found.records.captions) == ("set", "zeroshot", "cls")
    assert found.classnames == ["red", "green", "blue", "yellow"] and found.templates == ["a {c}"]
    assert [found.records.label(position) for position in range(8)] == [0, 1, 2, 3] * 2
    assert found.keys() == [f"{i // 4}.tar/{i:06d}" for i in range(8)]


def test_retrieval_set(folder: Path) -> None:
    (folder / "dataset_type.txt").write_text("retrieval\n")
    found = open_set(SetConfig(str(folder), name="mine"))
    assert (found.name, found.task) == ("mine", "retrieval")
    assert found.records.texts(5) == ["a green square number 5", "picture 5 of something green"]


@pytest.mark.parametrize(("said", "task"), [("retrieval", "zeroshot"), ("", "retrieval")])
def test_the_task_may_be_given(folder: Path, said: str, task: Any) -> None:
    (folder / "dataset_type.txt").write_text(said)
    assert open_set(SetConfig(str(folder), task=task)).task == task


def test_another_split(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert len(open_set(SetConfig(str(folder), split="val")).records) == 8


BROKEN = {
    "no folder": ("", r"set: no such folder"),
    "no split": ("test", r"set: no split 'test' \(it has other\)"),
    "no nshards": ("test/nshards.txt", r"set: no test/nshards\.txt"),
    "no classnames": ("classnames.txt", r"set: no classnames\.txt; give `classnames`, a file or imagenet"),
    "no templates": ("zeroshot_classification_templates.txt", r"set: no zeroshot_classification_templates\.txt; give"),
    "no shard": ("test/1.tar", r"set: nshards\.txt says 2 shards, but \S+/set/test/1\.tar is missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_missing_parts_are_named(folder: Path, case: str) -> None:
    part, message = BROKEN[case]
    (folder / "other").mkdir()
    (folder / part).rename(folder.parent / "moved")
    with pytest.raises(ConfigError, match=message) as error:
        open_set(SetConfig(str(folder)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", [case for case in BROKEN if case != "no shard"])
def test_missing_parts_are_found_early(folder: Path, case: str) -> None:
    check_set(SetConfig(str(folder)))
    part, message = BROKEN[case]
    (folder / "other").mkdir()
    (folder / part).rename(folder.parent / "moved")
    with pytest.raises(ConfigError, match=message):
        check_set(SetConfig(str(folder)))


@pytest.mark.parametrize("text", ["two", "0", "-1", "", "1.5"])
def test_bad_nshards(folder: Path, text: str) -> None:
    (folder / "test/nshards.txt").write_text(text)
    with pytest.raises(ConfigError, match=rf"set/test/nshards\.txt: expected a number, got '{text}'"):
        open_set(SetConfig(str(folder)))


def test_template_without_place(folder: Path) -> None:
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\na photo\n")
    with pytest.raises(ConfigError, match=r"set: a template without \{c\}"):
        open_set(SetConfig(str(folder)))


def test_damaged_shard(folder: Path) -> None:
    data = (folder / "test/1.tar").read_bytes()
    (folder / "test/1.tar").write_bytes(data[:3000])
    with pytest.raises(DataError, match=r"set/test/1\.tar: "):
        open_set(SetConfig(str(folder)))


def test_label_out_of_range(folder: Path) -> None:
    (folder / "classnames.txt").write_text("red\ngreen\nblue\n")
    with pytest.raises(DataError, match=r"0\.tar: sample '000003', member 'cls': label 3, but there are 3 class names"):
        open_set(SetConfig(str(folder)))


def numbers_of(evalset: EvalSet) -> list[int]:
    """The colour set's keys are the samples' numbers."""
    return [int(name.rpartition("/")[2]) for name in list(evalset.keys())]


def test_validation_sets_are_what_is_held_out(colour_set: Path) -> None:
    config = ValidationConfig(fraction=0.4)
    sources = Sources(DataConfig([SourceConfig(f"{colour_set}/train")], config))
    (only,) = validation_sets(sources, config)
    assert (only.name, only.task, only.records.captions) == ("validation", "retrieval", "txt")
    numbers = numbers_of(only)
    assert len(numbers) == sources.held.sum() and 17 < len(numbers) < 22
    assert only.records.texts(0)[1].startswith(f"picture {numbers[0]} of")


def test_validation_sets_of_two_sources(colour_set: Path) -> None:
    config = ValidationConfig(fraction=0.4)
    kinds = ("cls", "json:caption")
    sources = Sources(
        DataConfig([SourceConfig(f"{colour_set}/train/{i}.tar", caption=k) for i, k in enumerate(kinds)], config)
    )
    first, second = validation_sets(sources, config)
    assert (first.name, first.task, first.classnames[0]) == ("validation_0", "zeroshot", "red")
    assert (second.name, second.task, second.records.captions) == ("validation_1", "retrieval", "json:caption")
    assert set(numbers_of(first)) < set(range(16))
    assert first.records.label(0) == numbers_of(first)[0] % 4
    assert len(second.records.texts(0)) == 1


def test_validation_keys_differ_where_shards_are_called_alike(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / name / "train/0.tar", colour_samples(8))
    config = ValidationConfig(fraction=0.5)
    source = SourceConfig([f"{tmp_path}/a/train/0.tar", f"{tmp_path}/b/train/0.tar"])
    (only,) = validation_sets(Sources(DataConfig([source], config)), config)
    assert len(set(only.keys())) == len(only.keys()) == 8
    assert {name.partition("/")[0] for name in list(only.keys())} == {"a", "b"}
    assert only.records.take([7]).key(0) == only.keys()[7]


def test_validation_is_thinned_evenly(colour_set: Path) -> None:
    sources = Sources(DataConfig([SourceConfig(f"{colour_set}/train")], ValidationConfig(fraction=0.5)))
    (few,) = validation_sets(sources, ValidationConfig(fraction=0.5, max_samples=5))
    numbers = numbers_of(few)
    held = numbers_of(validation_sets(sources, ValidationConfig(fraction=0.5))[0])
    assert len(set(numbers)) == 5 and set(numbers) <= set(held)
    assert (numbers[0], numbers[-1]) == (held[0], held[-1])


def test_nothing_held_out_gives_no_set(colour_set: Path) -> None:
    config = ValidationConfig()
    assert validation_sets(Sources(DataConfig([SourceConfig(f"{colour_set}/train")], config)), config) == []


def test_real_sets(real_data: Path) -> None:
    photos = open_set(SetConfig(str(real_data / "imagenet_sample")))
    assert (photos.task, len(photos.records), len(photos.classnames)) == ("zeroshot", 1000, 1000)
    assert [photos.records.label(position) for position in (0, 999)] != [0, 0]
    captions = open_set(SetConfig(str(real_data / "flickr8k_sample")))
    assert (captions.task, len(captions.records), len(captions.records.texts(0))) == ("retrieval", 200, 5)
