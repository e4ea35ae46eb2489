"""Which names of models and sets would share a file."""

import pytest

from mmrep.config.checks import ConfigError
from mmrep.evaluation.outcome_names import check_model_names, check_set_names, file_stem, model_folder


def test_names_of_files() -> None:
    assert model_folder("runs/a/b") == "runs_a_b"
    assert (file_stem("x", "zeroshot", "zeroshot"), file_stem("x", "zeroshot", "knn")) == ("x", "x.knn")


def test_names_that_differ_pass() -> None:
    check_model_names(["a/b", "a/c", "a"])
    check_set_names([("x", ["auto", "knn"]), ("x.probe", ["knn"]), ("x.y", ["auto"]), ("knn", ["auto"])])


def test_names_that_are_one_as_a_file_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^models 'a/b' and 'a_b' would both write to outcomes/a_b; rename one$"):
        check_model_names(["a/b", "c", "a_b"])
    with pytest.raises(ConfigError, match="2 evaluation sets are named 'x'; give each its own `name`"):
        check_set_names([("x", ["auto"]), ("y", ["auto"]), ("x", ["knn"])])
    with pytest.raises(ConfigError, match=r"'x\.y\.knn' would write to the files of 'x\.y' under task knn; give it"):
        check_set_names([("x.y.knn", ["auto"]), ("x.y", ["auto", "knn"])])
