"""Several suites as one."""

from pathlib import Path

import pytest

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.probe import KnnConfig
from mmrep.config.suites import merge_suites
from mmrep.options import parse_config

SUITES = sorted(map(str, (Path(__file__).parents[2] / "eval" / "suites").glob("*.yaml")))


def suite(*sets: SetConfig, **options: object) -> EvaluationConfig:
    return EvaluationConfig(list(sets), **options)  # type: ignore[arg-type]  # options of any field


def test_sets_in_order_and_tasks_united() -> None:
    one = suite(SetConfig("data/a"), SetConfig("data/b", task="zeroshot"), knn=KnnConfig(k=(5,)))
    two = suite(SetConfig("data/b", task=["zeroshot", "knn"]), SetConfig("data/c"), batch_size=32)
    found = merge_suites([("1.yaml", one), ("2.yaml", two)])
    assert [(each.path, each.tasks) for each in found.sets] == [
        ("data/a", ("auto",)), ("data/b", ("zeroshot", "knn")), ("data/c", ("auto",)),
    ]  # fmt: skip
    assert (found.batch_size, found.knn, found.text_batch_size) == (32, KnnConfig(k=(5,)), 256)


def test_one_suite_stays_as_it_is() -> None:
    one = suite(SetConfig("data/a", name="x"), batch_size=7)
    found = merge_suites([("1.yaml", one)])
    assert ([each.result_name for each in found.sets], found.batch_size) == (["x"], 7)


def test_the_same_suite_twice_is_once() -> None:
    one = suite(SetConfig("data/a"), batch_size=7)
    found = merge_suites([("1.yaml", one), ("1.yaml", one)])
    assert ([each.path for each in found.sets], found.batch_size) == (["data/a"], 7)


def test_different_sets_of_one_name_get_their_suites() -> None:
    one, two = suite(SetConfig("x/a"), SetConfig("b")), suite(SetConfig("x/a", split="val"))
    found = merge_suites([("s/1.yaml", one), ("s/2.yaml", two)])
    assert [(each.result_name, each.split) for each in found.sets] == [("a@1", "test"), ("b", "test"), ("a@2", "val")]


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (suite(SetConfig("x/a"), SetConfig("y/a")), suite(), "1.yaml: two evaluation sets are called 'a': give one"),
        (suite(batch_size=32), suite(batch_size=64), "suites 1.yaml and 2.yaml disagree on batch_size"),
        (suite(knn=KnnConfig(k=(1,))), suite(knn=KnnConfig(k=(2,))), "disagree on knn: run them one at a time"),
    ],
)
def test_what_can_not_be_one(one: EvaluationConfig, two: EvaluationConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge_suites([("1.yaml", one), ("2.yaml", two)])


def test_all_suites_of_the_repository_go_together() -> None:
    found = merge_suites([(file, parse_config(EvaluationConfig, "eval", ["--config", file])) for file in SUITES])
    names = [each.result_name for each in found.sets]
    assert len(names) == len(set(names)) > 3
