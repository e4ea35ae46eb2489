"""Several suites as one."""

from pathlib import Path

import pytest

from mmrep.cli.parsing import read_suite
from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.instance import InstanceConfig
from mmrep.config.probe import KnnConfig
from mmrep.config.suites import merge_suites

SUITES = sorted(map(str, (Path(__file__).parents[2] / "eval" / "suites").glob("*.yaml")))


def suite(*sets: SetConfig, **options: object) -> EvaluationConfig:
    return EvaluationConfig(list(sets), **options)  # type: ignore[arg-type]  # options of any field


def names(configs: list[EvaluationConfig]) -> list[list[str]]:
    return [[each.result_name for each in config.sets] for config in configs]


def test_sets_in_order_and_tasks_united() -> None:
    one = suite(SetConfig("data/a"), SetConfig("data/b", task="zeroshot"), knn=KnnConfig(k=(5,)))
    two = suite(SetConfig("data/b", task=["zeroshot", "knn"]), SetConfig("data/c"), knn=KnnConfig(k=(5,)))
    (found,) = merge_suites([("1.yaml", one), ("2.yaml", two)])
    assert [(each.path, each.tasks) for each in found.sets] == [
        ("data/a", ("auto",)), ("data/b", ("zeroshot", "knn")), ("data/c", ("auto",)),
    ]  # fmt: skip
    assert found.knn == KnnConfig(k=(5,))


def test_suites_keep_their_options() -> None:
    scales = InstanceConfig(scales=(0.7, 1.0))
    one = suite(SetConfig("data/a"), SetConfig("data/b", task="instance"), instance=scales)
    two = suite(SetConfig("data/b", task="instance"), instance=InstanceConfig(scales=(1.0,)))
    three = suite(SetConfig("data/c"), SetConfig("data/a", task="knn"), instance=scales)
    found = merge_suites([("s/1.yaml", one), ("s/2.yaml", two), ("s/3.yaml", three)])
    assert [config.instance for config in found] == [scales, InstanceConfig()]
    assert names(found) == [["a", "b@1", "c"], ["b@2"]]
    assert found[0].sets[0].tasks == ("auto", "knn") and found[1].sets[0].tasks == ("instance",)


def test_one_suite_stays_as_it_is() -> None:
    (found,) = merge_suites([("1.yaml", suite(SetConfig("data/a", name="x"), batch_size=7))])
    assert ([each.result_name for each in found.sets], found.batch_size) == (["x"], 7)


def test_the_same_suite_twice_is_once() -> None:
    one = suite(SetConfig("data/a"), batch_size=7)
    (found,) = merge_suites([("1.yaml", one), ("1.yaml", one)])
    assert ([each.path for each in found.sets], found.batch_size) == (["data/a"], 7)


def test_different_sets_of_one_name_get_their_suites() -> None:
    one, two = suite(SetConfig("x/a"), SetConfig("b")), suite(SetConfig("x/a", split="val"))
    (found,) = merge_suites([("s/1.yaml", one), ("s/2.yaml", two)])
    assert [(each.result_name, each.split) for each in found.sets] == [("a@1", "test"), ("b", "test"), ("a@2", "val")]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (suite(SetConfig("x/a"), SetConfig("y/a")), "1.yaml: two evaluation sets are called 'a': give one"),
        (suite(batch_size=32), "1.yaml: no `sets`; a suite's options hold for its own sets"),
    ],
)
def test_what_is_no_suite(one: EvaluationConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge_suites([("1.yaml", one), ("2.yaml", suite(SetConfig("b")))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: [{path: x, tsak: knn}]", "unknown key 'sets[0].tsak'; did you mean 'task'?"),
        ("sets: [{path: x}, y]", "sets[1]: expected keys and values, as in {path: …}, got 'y'"),
        ("instance: {reranked: true}", "unknown key 'instance.reranked'; did you mean 'instance.rerank'?"),
        ("knn: {zzz: 1}", "unknown key 'knn.zzz'; valid: k, temperature"),
        ("sts: []", "unknown key 'sts'; did you mean 'sets'?"),
        ("sets: [{path: x, task: kn}]", "task: unknown value 'kn'; did you mean 'knn'? (valid: "),
        ("sets: [{path: x, split: [a]}]", "sets: \"split\": Expected a str. Got value: ['a']"),
        ("sets: [", "not YAML (line 1, column "),
        ("- a", "expected keys and values at the top, got list"),
    ],
)
def test_errors_name_file_and_key(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_suite(str(file))
    assert str(error.value).startswith(f"{file}: {message}")


def test_all_suites_of_the_repository_go_together() -> None:
    found = merge_suites([(file, read_suite(file)) for file in SUITES])
    together = [name for group in names(found) for name in group]
    assert len(together) == len(set(together)) > 3
    assert {"cifar10@probes", "cifar10@instance"} <= set(together)
