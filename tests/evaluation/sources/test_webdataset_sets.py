"""Sets in CLIP_benchmark's layout: behind addresses, with several classes an image, with what can be wrong in them."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import COLOURS, colour_samples, write_tar
from http_server import Server

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import SetConfig
from mmrep.data.tar import DataError
from mmrep.evaluation.sets import EvalSet, check_set, open_set

Samples = list[tuple[str, dict[str, bytes]]]


def write_set(folder: Path, shards: list[Samples], kind: str = "") -> Path:
    for number, samples in enumerate(shards):
        write_tar(folder / f"test/{number}.tar", samples)
    (folder / "test/nshards.txt").write_text(f"{len(shards)}\n")
    (folder / "classnames.txt").write_text("\n".join(COLOURS) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    if kind:
        (folder / "dataset_type.txt").write_text(f"{kind}\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", [colour_samples(4), colour_samples(4, 4)])


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


def hot(samples: Samples, make: Callable[[int], Any]) -> Samples:
    return [(key, {"png": members["png"], "npy": npy(make(i))}) for i, (key, members) in enumerate(samples)]


def same(one: EvalSet, other: EvalSet) -> None:
    assert (one.keys(), one.classnames, one.templates) == (other.keys(), other.classnames, other.templates)
    for position in range(len(one.records)):
        assert one.records.label(position) == other.records.label(position)
        assert one.records.image(position).equal(other.records.image(position))


def test_over_http(folder: Path) -> None:
    files = {f"/sets/set/{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with Server() as server:
        server.files |= files
        config = SetConfig(f"{server.url}/sets/set/")
        found = open_set(config)
        same(found, open_set(SetConfig(str(folder))))
        assert (found.name, found.task) == ("set", "zeroshot")
        with pytest.raises(ConfigError, match=r"set/: no val/nshards\.txt there: no such split, or not a set"):
            open_set(SetConfig(config.path, split="val"))
    check_set(SetConfig("http://127.0.0.1:9/nobody/listens"))


def test_in_any_file_system(folder: Path) -> None:
    (folder / "dataset_type.txt").write_text("retrieval")
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/webdataset_sets/set", recursive=True)
    found = open_set(SetConfig("memory://webdataset_sets/set"))
    assert (found.task, found.keys()[5]) == ("retrieval", "1.tar/000005")
    assert found.records.texts(5) == ["a green square number 5", "picture 5 of something green"]
    with pytest.raises(ConfigError, match=r"memory://webdataset_sets/set: no split 'val' \(it has test\)"):
        open_set(SetConfig("memory://webdataset_sets/set", split="val"))
    memory.pipe("/webdataset_sets/set/test/nshards.txt", b"3")
    with pytest.raises(DataError, match=r"memory://webdataset_sets/set/test/2\.tar: no such file"):
        open_set(SetConfig("memory://webdataset_sets/set"))


def test_several_classes(tmp_path: Path) -> None:
    wanted = [[], [1], [0, 3], [0, 1, 2, 3]]
    samples = hot(colour_samples(4), lambda i: np.isin(np.arange(4), wanted[i]).astype((bool, "f4", "i8", "u1")[i]))
    found = open_set(SetConfig(str(write_set(tmp_path, [samples], "multilabel"))))
    assert (found.multilabel, found.task) == (True, "zeroshot")
    assert [found.records.labels(position) for position in range(4)] == wanted
    assert found.records.take([2]).labels(0) == [0, 3]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0, 1, 0], r"shape \(3,\), but there are 4 class names"),
        ([[0, 1, 0, 1]], r"shape \(1, 4\)"),
        ([0, 1, 2, 0], "nothing but 0 and 1"),
        ([0.0, 1.0, 0.5, 0.0], "nothing but 0 and 1"),
        (np.array([0, 1, {}, 0], dtype=object), "not an array of numbers"),
        (np.array(["0", "1", "0", "1"]), "nothing but 0 and 1"),
    ],
)
def test_bad_labels_of_several_classes(values: Any, reason: str, tmp_path: Path) -> None:
    write_set(tmp_path, [hot(colour_samples(1), lambda _: values)], "multilabel")
    with pytest.raises(DataError, match=rf"sample '000000', member 'npy': .*{reason}"):
        open_set(SetConfig(str(tmp_path)))


def test_several_classes_fit_few_tasks(tmp_path: Path) -> None:
    write_set(tmp_path, [hot(colour_samples(1), lambda _: [1, 0, 0, 0])], "multilabel")
    with pytest.raises(ConfigError, match="task knn needs one class an image, but the set is multilabel"):
        check_set(SetConfig(str(tmp_path), task=["zeroshot", "knn"], train_split="val"))


def test_captions_per_image(folder: Path) -> None:
    found = open_set(SetConfig(str(folder), task="retrieval", captions_per_image=1))
    assert found.records.texts(5) == ["a green square number 5"]
    assert found.records.digest() != open_set(SetConfig(str(folder), task="retrieval")).records.digest()


def without(samples: Samples, member: str, number: int) -> Samples:
    return [
        (key, {name: data for name, data in members.items() if (i, name) != (number, member)})
        for i, (key, members) in enumerate(samples)
    ]


@pytest.mark.parametrize(
    ("member", "data", "task", "reason"),
    [
        ("png", None, "zeroshot", r"sample '000002' has no image"),
        ("cls", None, "zeroshot", r"sample '000002' has no member 'cls'"),
        ("cls", b"red", "zeroshot", r"sample '000002', member 'cls': expected an integer"),
        ("txt", None, "retrieval", r"sample '000002' has no member 'txt'"),
        ("txt", b" \n", "retrieval", r"sample '000002', member 'txt': no caption"),
    ],
)
def test_bad_samples_are_found_before_any_model_runs(
    member: str, data: bytes | None, task: str, reason: str, tmp_path: Path
) -> None:
    samples = without(colour_samples(4), member, 2)
    if data is not None:
        samples[2][1][member] = data
    with pytest.raises(DataError, match=reason):
        open_set(SetConfig(str(write_set(tmp_path, [samples])), task=task))


def test_tasks_that_do_not_fit(tmp_path: Path) -> None:
    only_text = [(key, {"png": members["png"], "txt": members["txt"]}) for key, members in colour_samples(4)]
    captions = str(write_set(tmp_path / "captions", [only_text], "retrieval"))
    with pytest.raises(ConfigError, match=r"captions: task zeroshot needs classes, in members 'cls'; .* png, txt"):
        open_set(SetConfig(captions, task="zeroshot"))
    (tmp_path / "captions/classnames.txt").unlink()
    with pytest.raises(ConfigError, match=r"captions: no classnames\.txt; .* says retrieval: is it the task zeroshot"):
        check_set(SetConfig(captions, task="zeroshot"))
    with pytest.raises(ConfigError, match="captions: zeroshot and retrieval need different sets"):
        check_set(SetConfig(captions, task=["zeroshot", "retrieval"]))
    only_classes = [(key, {"png": members["png"], "cls": members["cls"]}) for key, members in colour_samples(4)]
    classes = str(write_set(tmp_path / "classes", [only_classes]))
    with pytest.raises(ConfigError, match=r"classes: task retrieval needs captions, in members 'txt'; .* cls, png"):
        open_set(SetConfig(classes, task="retrieval"))


def test_a_training_split_is_another_one(folder: Path) -> None:
    with pytest.raises(ConfigError, match="knn would be fitted on the split 'test' that it is tested on"):
        check_set(SetConfig(str(folder), task=["zeroshot", "knn"], train_split="test"))
    with pytest.raises(ConfigError, match=r"no split 'train' \(it has test\)"):
        check_set(SetConfig(str(folder), task="knn"))
    (folder / "train").mkdir()
    check_set(SetConfig(str(folder), task="knn"))


def test_class_names_of_the_users_own(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "names.txt"
    file.write_text("rot\ngrün\nblau\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"classnames: \S+/names.txt has 3 names, but the set has 4 classes"):
        open_set(SetConfig(str(folder), classnames=str(file)))
    file.write_text("rot\ngrün\nblau\ngelb\n", encoding="utf-8")
    assert open_set(SetConfig(str(folder), classnames=str(file))).classnames[3] == "gelb"
    (folder / "classnames.txt").unlink()
    file.write_text("rot\ngrün\nblau\ngelb\nweiß\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "mmrep"):
        open_set(SetConfig(str(folder), classnames=str(file)))
    assert "5 class names, but the highest label is 3" in caplog.text


def test_imagenets_templates(folder: Path) -> None:
    found = open_set(SetConfig(str(folder), templates="imagenet"))
    assert len(found.templates) == 80 and found.templates[0] == "a bad photo of a {c}."


def test_a_key_may_occur_in_two_shards(tmp_path: Path) -> None:
    found = open_set(SetConfig(str(write_set(tmp_path, [colour_samples(4), colour_samples(4)]))))
    assert len(set(found.keys())) == 8


def test_a_key_may_not_occur_twice_in_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a duplicate key, or a wrong order"):
        open_set(SetConfig(str(write_set(tmp_path, [colour_samples(4) + colour_samples(4)]))))


def test_a_shard_copied_under_another_name_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "mmrep"):
        open_set(SetConfig(str(folder)))
        assert "several shards" not in caplog.text
        open_set(SetConfig(str(write_set(tmp_path / "twice", [colour_samples(4), colour_samples(6, 2)]))))
    assert "twice: 2 keys occur in several shards, such as '000002': if these are the same samples" in caplog.text


def test_what_clip_benchmark_reads_in_another_way_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = colour_samples(1)[0][1]["png"]
    samples = [("a", {"png": image, "webp": image, "txt": b"x"}), ("b", {"png": image, "txt": b"x\n\ny"})]
    with caplog.at_level(logging.WARNING, logger="mmrep"):
        found = open_set(SetConfig(str(write_set(tmp_path / "set", [samples], "retrieval"))))
    assert [found.records.texts(i) for i in range(2)] == [["x"], ["x", "y"]]
    assert "1 samples, the first 'a', have several images; the first of jpg, jpeg, png, webp is used" in caplog.text
    assert "1 samples have blank lines, which CLIP_benchmark counts as captions" in caplog.text
