"""Instance retrieval of models: by class and by ground truth, with several scales and reranking."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import COLOURS, colour_samples, png, write_tar
from torchmetrics.functional.retrieval import retrieval_average_precision

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.instance import InstanceConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.suite import evaluate, write_results
from mmrep.evaluation.tasks.instance import instance
from mmrep.model.dual_encoder import DualEncoder

FIGURES = {"instance_recall@1", "instance_recall@5", "instance_recall@10", "instance_map", "instance_map@10"}
SETUPS = {f"instance_{s}_{f}" for s in ("easy", "medium", "hard") for f in ("map", "mp@1", "mp@5", "mp@10")}


def config(**options: Any) -> EvaluationConfig:
    return EvaluationConfig(batch_size=6, workers=0, instance=InstanceConfig(**options))


@pytest.fixture(scope="module")
def models(tiny: Callable[..., DualEncoder]) -> dict[str, DualEncoder]:
    return {"avg": tiny("avg", seed=1), "cls": tiny("cls", seed=2)}


@pytest.fixture
def colours(colour_set: Path) -> EvalSet:
    return open_set(SetConfig(str(colour_set), name="colours"))._replace(tasks=("instance",))


@pytest.fixture
def towers(tmp_path: Path) -> EvalSet:
    """Twelve pictures of four colours; three queries, one cut out of a larger picture, one without an easy image."""
    folder = tmp_path / "jpg"
    folder.mkdir()
    for name, members in colour_samples(12):
        (folder / f"{name}.png").write_bytes(members["png"])
    (folder / "wall.png").write_bytes(png(COLOURS["red"], (40, 48)))
    gnd = [
        {"bbx": [8, 16, 40, 48], "easy": [0, 4], "hard": [8], "junk": [3]},
        {"bbx": [0, 0, 16, 16], "easy": [], "hard": [1, 5], "junk": []},
        {"bbx": [0, 0, 16, 16], "easy": [2], "hard": [], "junk": [6, 10]},
    ]
    truth = {"imlist": [f"{i:06d}" for i in range(12)], "qimlist": ["wall", "000009", "000010"], "gnd": gnd}
    (tmp_path / "gnd.json").write_text(json.dumps(truth))
    made = SetConfig(str(folder), name="towers", task="instance", ground_truth=str(tmp_path / "gnd.json"))
    return open_set(made)


def test_by_class_against_torchmetrics(models: dict[str, DualEncoder], colours: EvalSet) -> None:
    results = evaluate(models, [colours], config())
    for result, images in zip(results, Context(models, colours, config()).images, strict=True):
        found, labels = result.evaluation, torch.arange(16) % 4
        scores = images.double() @ images.double().T
        expected = []
        for i in range(16):
            others = torch.arange(16) != i
            expected.append(float(retrieval_average_precision(scores[i, others], labels[others] == labels[i])))
            nearest = labels[others][scores[i, others].argsort(descending=True, stable=True)]
            assert found.outcomes["instance_recall@1"][i] == (nearest[0] == labels[i])
            assert found.outcomes["instance_recall@5"][i] == (nearest[:5] == labels[i]).any()
        np.testing.assert_allclose(found.outcomes["instance_map"], expected, atol=1e-6)
        assert set(found.metrics) == set(found.chance) == set(found.pessimistic) == FIGURES
        for name, value in found.metrics.items():
            assert value == found.outcomes[name].mean()
            assert found.pessimistic[name] == found.outcomes[f"pessimistic_{name}"].mean()
        assert found.chance["instance_recall@1"] == pytest.approx(3 / 15)


def scored(images: torch.Tensor, labels: list[int], caplog: Any = None, **options: Any) -> Evaluation:
    """The task on embeddings that are given."""

    class Given(Context):
        def __init__(self) -> None:
            self.models, self.config = {"given": None}, config(**options)  # type: ignore[dict-item]  # no model is run
            records: Any = range(len(labels))
            self.evalset = EvalSet("given", "zeroshot", records, ["x"] * (max(labels) + 1), [])
            self.images, self.labels = [images], labels  # type: ignore[misc]  # given, not embedded

    from mmrep.evaluation.tasks import instance as module

    original = module.multiscale_images
    module.multiscale_images = lambda context, scales: context.images  # type: ignore[assignment]  # the same
    try:
        return instance(Given())[0]
    finally:
        module.multiscale_images = original


def on_circle(*angles: float) -> torch.Tensor:
    turned = torch.tensor(angles)
    return torch.stack([turned.cos(), turned.sin()], dim=1)


def test_a_case_with_known_answers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmrep"):
        found = scored(on_circle(0, 0.1, 0.3, 0.6, 1.0), [0, 1, 0, 1, 2])
    # Orders: 0: 1 2 3 4; 1: 0 2 3 4; 2: 1 0 3 4 (0.2, 0.3, 0.3 … 0.3, 0.7); 3: 2 4 1 0; 4 has nothing to find.
    precisions = found.outcomes["instance_map"]
    assert precisions[[0, 1, 3]].tolist() == pytest.approx([1 / 2, 1 / 3, 1 / 3])
    assert np.isnan(precisions[4]) and np.isnan(found.outcomes["instance_recall@1"][4])
    assert found.metrics["instance_recall@1"] == 0 and found.metrics["instance_recall@5"] == 1
    assert found.details["queries_left_out"] == {"instance_map": 1} and found.details["queries"] == 5
    assert "instance_map: 1 queries have nothing to find and are left out" in caplog.text


def test_map_at_10_divides_by_what_can_be_found() -> None:
    images = on_circle(*(0.01 * i for i in range(15)))
    assert scored(images, [0] * 15).metrics["instance_map@10"] == 1
    labels = [0] + [1] * 12 + [0, 0]
    found = scored(images, labels)
    assert found.outcomes["instance_map@10"][0] == 0 < found.outcomes["instance_map"][0]


def test_ties_are_reported_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmrep"):
        found = scored(on_circle(0, 0, 0, 0), [0, 0, 1, 1])
    assert found.outcomes["instance_recall@1"].tolist() == [1, 1, 0, 0]
    assert found.pessimistic["instance_recall@1"] == 0 and found.metrics["instance_recall@1"] == 0.5
    assert found.pessimistic["instance_map"] == pytest.approx(1 / 3)
    assert found.outcomes["pessimistic_instance_map"].tolist() == pytest.approx([1 / 3] * 4)
    assert "model given: ties change instance_recall@1" in caplog.text


def test_clusters_are_found_better_after_reranking() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(120) % 6).tolist()
    images = F.normalize(F.one_hot(torch.tensor(labels), 24) + 0.35 * torch.randn(120, 24, generator=generator), dim=1)
    found = scored(images, labels, rerank=True, rerank_top=60, beta=0.5)
    assert set(found.metrics) == FIGURES | {f"reranked_{name}" for name in FIGURES} == set(found.chance)
    assert found.metrics["reranked_instance_map"] > found.metrics["instance_map"] + 0.02
    assert found.chance["reranked_instance_map"] == found.chance["instance_map"]
    assert found.details["rerank"] == {"top": 60, "neighbours": 9, "beta": 0.5}


def test_random_embeddings_score_as_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(400) % 40).tolist()
    found = scored(F.normalize(torch.randn(400, 64, generator=generator), dim=1), labels)
    for name, value in found.metrics.items():
        error = found.outcomes[name].std() / 400**0.5
        assert abs(value - found.chance[name]) < 4 * error


def test_by_ground_truth(models: dict[str, DualEncoder], towers: EvalSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mmrep"):
        results = evaluate(models, [towers], config())
    images = Context(models, towers, config()).images
    for result, embeddings in zip(results, images, strict=True):
        found = result.evaluation
        assert set(found.metrics) == set(found.chance) == set(found.pessimistic) == SETUPS
        scores = embeddings[12:].double() @ embeddings[:12].double().T
        # Query 0 in the easy setup: 3 is junk, 8 is hard.
        order = [i for i in scores[0].argsort(descending=True).tolist() if i not in (3, 8)]
        first, second = sorted(order.index(i) for i in (0, 4))
        area = ((1.0 if first == 0 else 0) + 1 / (first + 1) + 1 / second + 2 / (second + 1)) / 4
        assert found.outcomes["instance_easy_map"][0] == pytest.approx(area)
        assert np.isnan(found.outcomes["instance_easy_map"]).tolist() == [False, True, False]
        assert len(found.outcomes["query_keys"]) == 3
        assert np.isnan(found.outcomes["instance_hard_map"]).tolist() == [False, False, True]
        assert found.metrics["instance_easy_map"] == np.nanmean(found.outcomes["instance_easy_map"])
    assert "towers: task instance: instance_easy_map: 1 queries have nothing to find" in caplog.text


def test_queries_are_embedded_within_their_box(models: dict[str, DualEncoder], towers: EvalSet) -> None:
    # Below and right of its darker corner, the wall is the colour of the first picture's lower part alone.
    part = towers.records.image(12)
    assert part.shape == (3, 32, 32) and (part == torch.tensor(COLOURS["red"])[:, None, None]).sum() > 3 * 900


def test_scales_and_reranking_of_a_ground_truth(models: dict[str, DualEncoder], towers: EvalSet) -> None:
    found = evaluate(models, [towers], config(scales=(0.75, 1.0), rerank=True, rerank_top=5))[0].evaluation
    assert set(found.metrics) == SETUPS | {f"reranked_{name}" for name in SETUPS}
    assert found.details["scales"] == [0.75, 1.0]


def test_results_can_be_written(models: dict[str, DualEncoder], towers: EvalSet, tmp_path: Path) -> None:
    write_results(evaluate(models, [towers], config()), tmp_path / "out/results.json")
    text = (tmp_path / "out/results.json").read_text()
    assert "NaN" not in text and json.loads(text)["results"][0]["n"] == 15


def test_sets_that_do_not_fit(
    models: dict[str, DualEncoder], colour_set: Path, colours: EvalSet, towers: EvalSet
) -> None:
    captions = open_set(SetConfig(f"{colour_set}/retrieval"))._replace(tasks=("instance",))
    with pytest.raises(
        ConfigError, match="retrieval: task instance needs classes or `ground_truth`, but the set has cap"
    ):
        evaluate(models, [captions], config())
    with pytest.raises(ConfigError, match="towers: task instance: 3 images of 12 \\+ 3; it needs all of them"):
        evaluate(models, [towers._replace(records=towers.records.take([0, 1, 12]))], config())
    alone = colours._replace(records=colours.records.take([0, 1, 2, 3]))
    with pytest.raises(ConfigError, match="colours: task instance: no query has a right image"):
        evaluate(models, [alone], config())
    with pytest.raises(ConfigError, match="colours: task instance needs two images or more, but the set has 1"):
        evaluate(models, [colours._replace(records=colours.records.take([0]))], config())
    with pytest.raises(ConfigError, match="needs one class an image"):
        evaluate(models, [colours._replace(multilabel=True)], config())


def test_labels_of_shards(models: dict[str, DualEncoder], tmp_path: Path) -> None:
    """The same set in another order gives the same figures."""
    for name, samples in (("one", colour_samples(16)), ("other", colour_samples(16)[::-1])):
        write_tar(tmp_path / name / "test/0.tar", samples)
        (tmp_path / name / "test/nshards.txt").write_text("1")
        (tmp_path / name / "classnames.txt").write_text("\n".join(COLOURS))
        (tmp_path / name / "zeroshot_classification_templates.txt").write_text("{c}\n")
    sets = [open_set(SetConfig(str(tmp_path / name)))._replace(tasks=("instance",)) for name in ("one", "other")]
    one, other = (evaluate({"avg": models["avg"]}, [each], config())[0].evaluation.metrics for each in sets)
    assert one == pytest.approx(other)
