"""The same weights on the same sets: CLIP_benchmark's figures, as make_clip_benchmark.py has stored them.

They are those of --no_amp: by default CLIP_benchmark runs the towers under autocast, which is bfloat16 on CPUs and not
what the weights are; the figures with it are stored too, and differ by up to a point.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_clip_benchmark import EXPECTED, SETS, derive_sets, write_open_clip
from PIL import Image

import mmrep
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.embedding.embed import Centre
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.suite import evaluate
from mmrep.model.dual_encoder import DualEncoder

Expected = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def expected() -> Expected:
    return json.loads(EXPECTED.read_text())["sets"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return mmrep.load(write_open_clip(tmp_path_factory.mktemp("weights") / "model"))


@pytest.fixture(scope="module")
def sets(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    derive_sets(real_data, folder)
    return folder


@pytest.mark.parametrize("name", SETS)
def test_figures_are_those_of_clip_benchmark(name: str, model: DualEncoder, sets: Path, expected: Expected) -> None:
    (result,) = evaluate({"tiny": model}, [open_set(SetConfig(str(sets / name)))], EvaluationConfig(workers=0))
    figures = {**result.evaluation.metrics, **result.evaluation.further}
    theirs = expected[name]["metrics"]
    assert {metric: figures.get(metric) for metric in theirs} == pytest.approx(theirs, rel=0, abs=1e-6)


def test_the_weights_have_learnt_something(expected: Expected) -> None:
    """At chance, figures could agree without the embeddings doing so."""
    assert expected["cifar10"]["metrics"]["acc1"] > 0.3
    assert expected["imagenet_sample"]["metrics"]["acc5"] > 3 * 5 / 1000
    assert expected["flickr8k_sample"]["metrics"]["image_retrieval_recall@10"] > 2 * 10 / 200
    assert any(part["metrics"] != part["metrics_with_amp"] for part in expected.values())


@pytest.mark.parametrize("name", ["flickr8k_sample", "imagenet_sample"])
def test_pixels_are_those_of_open_clips_transform(
    name: str, sets: Path, tiny: Callable[..., DualEncoder], size: int = 64
) -> None:
    records = open_set(SetConfig(str(sets / name))).records
    args = {"img_size": size, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    preprocess = tiny(image={"args": args, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}).preprocess
    for position in range(0, len(records), len(records) // 50):
        pixels = records.image(position)
        theirs = preprocess(Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())))
        assert torch.equal(Centre(size, size)(pixels, position), (255 * theirs).round().byte())
