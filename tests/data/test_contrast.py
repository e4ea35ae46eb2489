"""A training set of one class or caption is refused before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import png, write_tar

from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.config.tree import TrainConfig
from mmrep.data.sources import Sources, check_contrast

IMAGE = png((1, 2, 3))


def sources(folder: Path, shards: list[list[int]], captions: str | dict[str, float] = "cls") -> Sources:
    for i, labels in enumerate(shards):
        samples = [(f"{i}-{j}", {"png": IMAGE, "cls": b"%d" % label, "txt": b"x"}) for j, label in enumerate(labels)]
        write_tar(folder / f"train/{i}.tar", samples)
    (folder / "classnames.txt").write_text("cat\ndog\ncat\n", encoding="utf-8")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n", encoding="utf-8")
    return Sources(DataConfig([SourceConfig(str(folder / "train"), caption=captions)]))


@pytest.mark.parametrize("shards", [[[0]], [[0, 0], [0, 0, 0]], [[0, 2], [2]]])
def test_one_class_is_refused(tmp_path: Path, shards: list[list[int]]) -> None:
    """Two classes of one name are one."""
    with pytest.raises(ConfigError, match=r"data.train: all \d pairs are of one class or caption \('\w+ cat'\)"):
        check_contrast(sources(tmp_path, shards))


def test_one_caption_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"all 2 pairs are of one class or caption \('x'\)"):
        check_contrast(sources(tmp_path, [[0, 1]], "txt"))


def test_a_run_is_refused(tmp_path: Path, recipe: Callable[..., TrainConfig]) -> None:
    """Before anything is trained; unless the classes are to be each other's negatives."""
    from mmrep.training.build import build_run

    sources(tmp_path, [[0] * 8])
    one_class = {"shards": str(tmp_path / "train"), "caption": "cls"}
    options: dict[str, Any] = {"evaluation": {"sets": []}, "data": {"validation": ValidationConfig(0)}}
    with pytest.raises(ConfigError, match="data.train: all 8 pairs are of one class or caption"):
        build_run(recipe("refused", source=one_class, **options))
    build_run(recipe("asked_for", source=one_class, loss={"duplicates": "negative"}, **options)).tracker.close()


def test_a_second_class_anywhere_is_enough(tmp_path: Path) -> None:
    check_contrast(sources(tmp_path, [[0, 0, 0], [0, 1]]))


def test_several_kinds_of_caption_differ(tmp_path: Path) -> None:
    check_contrast(sources(tmp_path, [[0, 0]], {"cls": 0.5, "txt": 0.5}))


def test_unreadable_samples_are_left_to_the_loader(tmp_path: Path) -> None:
    check_contrast(sources(tmp_path, [[7, 7]]))
