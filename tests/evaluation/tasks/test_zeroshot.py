"""Zero-shot classification of a model against the steps written out, and what is said of classes that look alike."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.scoring.classification import zeroshot_metrics
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.tasks.zeroshot import embed_classes, zeroshot
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=16, workers=0)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("avg", seed=3).eval()


@pytest.fixture
def colours(colour_set: Path) -> EvalSet:
    return open_set(SetConfig(str(colour_set), name="colours"))


def test_prompts_are_grouped_by_class(model: DualEncoder, colours: EvalSet) -> None:
    evalset = colours._replace(templates=["a {c} {c}", "{c}", "the photo of {c} things"])
    with torch.inference_mode():
        classes = []
        for name in evalset.classnames:
            tokens, _ = model.tokenizer.batch([f"a {name} {name}", name, f"the photo of {name} things"])
            classes.append(F.normalize(model.encode_text(tokens).mean(0), dim=-1))
    # Every class embedding is nearest to itself: the labels come back right, and only in this order.
    found = embed_classes(model, evalset, text_batch=5)
    torch.testing.assert_close(found, torch.stack(classes), rtol=0, atol=1e-5)
    right = zeroshot_metrics(torch.stack(classes), found, [0, 1, 2, 3])
    assert right.metrics["acc1"] == 1
    turned = zeroshot_metrics(torch.stack(classes[1:] + classes[:1]), found, [0, 1, 2, 3])
    assert turned.metrics["acc1"] == 0


def test_class_names_that_occur_twice_are_told(
    model: DualEncoder, colours: EvalSet, caplog: pytest.LogCaptureFixture
) -> None:
    alike = colours._replace(classnames=["red", "red", "red", "red"])
    with caplog.at_level(logging.WARNING, "mmrep"):
        (found,) = zeroshot(Context({"tiny": model}, alike, CONFIG))
    assert found.metrics == {"acc1": 0.25, "mean_per_class_recall": 0.25}
    assert found.pessimistic == {"acc1": 0, "mean_per_class_recall": 0}
    (line,) = caplog.messages
    assert "evaluation set colours: a wrong class ties with the right one (tiny: 16 of 16 images)" in line
    assert line.endswith("classes with one embedding: red")


def test_without_ties_nothing_is_said(model: DualEncoder, colours: EvalSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmrep"):
        (found,) = zeroshot(Context({"tiny": model}, colours, CONFIG))
    assert not caplog.messages and found.pessimistic == found.metrics
    assert set(found.tables) == {"per_class", "confusion"}
    assert [row[1] for row in found.tables["per_class"][1:]] == colours.classnames


def test_several_classes_an_image(model: DualEncoder, colours: EvalSet, caplog: pytest.LogCaptureFixture) -> None:
    (found,) = zeroshot(Context({"tiny": model}, colours._replace(multilabel=True), CONFIG))
    assert set(found.metrics) == set(found.chance) == {"mean_average_precision"}
    assert [row[:3] for row in found.tables["per_class"][1:]] == [
        [str(label), name, "4"] for label, name in enumerate(colours.classnames)
    ]


def test_a_set_without_classes_is_refused(model: DualEncoder, colour_set: Path) -> None:
    captions = open_set(SetConfig(f"{colour_set}/retrieval"))
    with pytest.raises(ConfigError, match="set retrieval: task zeroshot needs classes"):
        zeroshot(Context({"tiny": model}, captions, CONFIG))
