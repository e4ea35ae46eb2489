"""Embeddings: each image once for all models, texts once each and in order."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import colour_samples, png, write_tar
from jaxtyping import UInt8
from torch import Tensor

from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.data.tar import DataError
from mmrep.evaluation.embedding.embed import Centre, embed_images, embed_set, embed_texts
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.model.dual_encoder import DualEncoder

CONFIG = EvaluationConfig(batch_size=5, text_batch_size=3, workers=0)


@pytest.fixture(scope="module")
def model(tiny: Callable[..., DualEncoder]) -> DualEncoder:
    return tiny("avg", seed=1).eval()


@pytest.fixture
def classes(colour_set: Path) -> EvalSet:
    return open_set(SetConfig(str(colour_set)))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_texts_keep_their_order_and_doubles(model: DualEncoder) -> None:
    texts = ["a long sentence about a red square", "b", "a", "b", "a red", "", "b"]
    found = embed_texts(model, texts, 3)
    with torch.inference_mode():
        alone = torch.cat([model.encode_text(model.tokenizer.batch([text])[0]) for text in texts])
    close(found, alone)
    assert torch.equal(found[1], found[3]) and torch.equal(found[1], found[6])
    close(found.norm(dim=1), torch.ones(7))


def test_each_text_is_encoded_once_and_short(model: DualEncoder) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.text.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    embed_texts(model, ["x"] * 50 + ["a b c d e f g h i j k"] + ["y"] * 50, 2)
    hook.remove()
    assert shapes == [(2, 3), (1, 13)]


def test_batches_of_texts_are_sorted_by_tokens(model: DualEncoder) -> None:
    """Not by letters, of which a long common word has many."""
    shapes: list[tuple[int, ...]] = []
    hook = model.text.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    embed_texts(model, ["photographs", "a b c d", "illustration", "e f g h"], 2)
    hook.remove()
    assert shapes == [(2, 3), (2, 6)]


def test_texts_of_the_same_tokens_are_encoded_once(model: DualEncoder) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.text.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    found = embed_texts(model, ["A Cat", "a cat", " a  cat "], 2)
    hook.remove()
    assert shapes == [(1, 4)] and torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_images_are_embedded_in_order(model: DualEncoder, classes: EvalSet) -> None:
    (found,) = embed_set([model], classes.records, CONFIG)
    pixels = torch.stack([Centre(16, 16)(classes.records.image(i), i) for i in range(16)])
    with torch.inference_mode():
        close(found, model.encode_image(pixels))


def test_workers_change_nothing(model: DualEncoder, classes: EvalSet) -> None:
    one = embed_set([model], classes.records, CONFIG)
    two = embed_set([model], classes.records, EvaluationConfig(batch_size=5, workers=2))
    assert torch.equal(one[0], two[0])


def test_models_of_several_sizes_in_one_pass(
    model: DualEncoder, classes: EvalSet, tiny: Callable[..., DualEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    large: Any = tiny(
        "max", image={"args": {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}}
    )
    models = [model, large.eval(), tiny("cls").eval()]
    together = embed_set(models, classes.records, CONFIG)
    for one, found in zip(models, together, strict=True):
        assert torch.equal(embed_set([one], classes.records, CONFIG)[0], found)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_with_one_line(
    model: DualEncoder, colour_set: Path, tmp_path: Path, workers: int
) -> None:
    samples = colour_samples(8)
    samples[6] = ("bad", {"png": png((1, 2, 3))[:50], "cls": b"0"})
    write_tar(tmp_path / "test/0.tar", samples)
    (tmp_path / "test/nshards.txt").write_text("1")
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (tmp_path / name).write_text((colour_set / name).read_text())
    with pytest.raises(DataError, match=r"0\.tar: sample 'bad', member 'png': can't decode image") as error:
        embed_set([model], open_set(SetConfig(str(tmp_path))).records, EvaluationConfig(batch_size=4, workers=workers))
    assert type(error.value) is DataError and "\n" not in str(error.value)


class _Drawn(NamedTuple):
    """Pixels that are the sample's number."""

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 1 3"]:
        del image
        return torch.tensor(list(sample.to_bytes(9, "little")), dtype=torch.uint8).view(3, 1, 3)


def test_what_is_drawn_for_a_sample_is_the_same_in_any_part_of_the_set(classes: EvalSet) -> None:
    def numbers(positions: list[int], workers: int) -> Tensor:
        config = EvaluationConfig(batch_size=5, workers=workers)
        records = classes.records.take(positions)
        return embed_images(lambda views: [views[_Drawn()].flatten(1).float()], [_Drawn()], records, config)[0]

    everything = numbers(list(range(16)), 0)
    assert len(everything.unique(dim=0)) == 16
    assert torch.equal(numbers([7, 3, 12], 0), everything[[7, 3, 12]])
    assert torch.equal(numbers([7, 3, 12], 1), everything[[7, 3, 12]])


def test_workers_leave_the_global_generator_alone(model: DualEncoder, classes: EvalSet) -> None:
    before = torch.get_rng_state()
    embed_set([model], classes.records, EvaluationConfig(batch_size=5, workers=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_of_one_machine_share_its_cores(
    model: DualEncoder, classes: EvalSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("mmrep.evaluation.embedding.embed.default_workers", lambda here: (asked.append(here), 0)[1])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    embed_set([model], classes.records, EvaluationConfig(batch_size=5))
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    embed_set([model], classes.records, EvaluationConfig(batch_size=5))
    assert asked == [4, 1]
