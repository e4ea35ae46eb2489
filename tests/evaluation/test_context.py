"""What tasks share: embeddings made once, through the cache; texts and tokenizers that don't fit."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mmrep.config.checks import MmrepError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding import cache as embed_cached
from mmrep.evaluation.embedding.cache import EmbeddingCache
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=6, text_batch_size=4, workers=0)


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, run by other tests, keeps log lines from caplog."""
    monkeypatch.setattr(logging.getLogger("mmrep"), "propagate", True)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("avg", seed=1).eval()


@pytest.fixture
def pairs(colour_set: Path) -> EvalSet:
    return open_set(SetConfig(str(colour_set / "retrieval")))


def test_no_image_is_decoded_where_all_is_cached(
    model: DualEncoder, colour_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    shutil.copytree(colour_set, tmp_path / "set")
    (tmp_path / "set/train/nshards.txt").write_text("3")
    evalset = open_set(SetConfig(str(tmp_path / "set")))
    first = Context({"m": model}, evalset, CONFIG, cache=cache)
    assert first.train.evalset.name == "set/train"
    images, train = first.images[0], first.train.images[0]
    assert (len(images), len(train)) == (16, 48)
    for name in ("embed_set", "embed_texts"):
        monkeypatch.setattr(embed_cached, name, lambda *args: pytest.fail("encoded again"))
    again = Context({"m": model}, evalset, CONFIG, cache=cache)
    assert torch.equal(again.images[0], images) and torch.equal(again.train.images[0], train)


def test_embeddings_that_are_not_finite_are_refused_and_not_kept(
    tiny: Callable[..., DualEncoder], pairs: EvalSet, tmp_path: Path
) -> None:
    model = tiny("avg").eval()
    with torch.no_grad():
        model.image.trunk.pos_embed[0, 0, 0] = float("nan")
    context = Context({"bad": model}, pairs, CONFIG, cache=EmbeddingCache(tmp_path))
    with pytest.raises(MmrepError, match="model bad: its embeddings on retrieval are not finite"):
        _ = context.images
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cached", [False, True])
def test_text_embeddings_that_are_not_finite_are_refused(
    tiny: Callable[..., DualEncoder], pairs: EvalSet, tmp_path: Path, cached: bool
) -> None:
    model = tiny("avg").eval()
    with torch.no_grad():
        model.text.tower.ln_final.bias[0] = float("nan")
    context = Context({"bad": model}, pairs, CONFIG, cache=EmbeddingCache(tmp_path) if cached else None)
    with pytest.raises(MmrepError, match="model bad: its text embeddings on retrieval are not finite; did training"):
        context.encode_texts(model, ["a", "b"])


def test_texts_that_are_cut_are_counted_once_a_set(
    model: DualEncoder, pairs: EvalSet, caplog: pytest.LogCaptureFixture
) -> None:
    context = Context({"a": model, "b": model}, pairs, CONFIG)
    exact = "a " * 14  # 14 tokens, with start and end the whole context
    texts = ["short", exact, exact + "b", exact + "b", "b " * 40]
    for _ in range(2):
        assert context.encode_texts(model, texts).shape == (5, 16)
    (message,) = [message for message in caplog.messages if "cut" in message]
    assert message.startswith("evaluation set retrieval: 2 of 4 texts are longer than the 16 tokens of the context")
