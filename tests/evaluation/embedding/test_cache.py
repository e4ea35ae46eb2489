"""The embedding cache: same bits, another key for whatever changes them, damage noticed, size bounded."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import colour_samples, png, write_tar

import mmrep
from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.data.layouts.contents import Item
from mmrep.evaluation.embedding import cache as embed_cached
from mmrep.evaluation.embedding.cache import (
    EmbeddingCache,
    Key,
    embed_set_cached,
    embed_texts_cached,
    image_key,
    text_key,
    tower_digest,
)
from mmrep.evaluation.embedding.embed import Centre, centre_of
from mmrep.evaluation.sets import open_set
from mmrep.evaluation.sources.records import FileRecords, Records
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.resolution import at_resolution

CONFIG = EvaluationConfig(batch_size=6, text_batch_size=4, workers=0)
TEXTS = ["a red square", "a blue square", "b", "a red square", "something rather long about a square"]


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line, run by other tests, keeps log lines from caplog."""
    monkeypatch.setattr(logging.getLogger("mmrep"), "propagate", True)


@pytest.fixture(scope="module")
def models(tiny: Callable[..., DualEncoder]) -> list[DualEncoder]:
    return [tiny("avg", seed=1).eval(), tiny("ggem", seed=2).eval()]


@pytest.fixture
def records(colour_set: Path) -> Records:
    return open_set(SetConfig(str(colour_set))).records


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "embeddings")


@pytest.fixture
def passes(models: list[DualEncoder], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[DualEncoder]]]:
    """The models of every pass over images or texts."""
    found: list[list[DualEncoder]] = []
    images, texts = embed_cached.embed_set, embed_cached.embed_texts
    monkeypatch.setattr(embed_cached, "embed_set", lambda m, *rest: (found.append(list(m)), images(m, *rest))[1])
    monkeypatch.setattr(embed_cached, "embed_texts", lambda m, *rest: (found.append([m]), texts(m, *rest))[1])
    yield found


def test_same_bits_and_only_what_is_missing_runs(
    models: list[DualEncoder], records: Records, cache: EmbeddingCache, passes: list[list[DualEncoder]]
) -> None:
    without = embed_set_cached(models, records, CONFIG, None)
    embed_set_cached(models[:1], records, CONFIG, cache)
    first = embed_set_cached(models, records, CONFIG, cache)
    again = embed_set_cached(models, records, CONFIG, EmbeddingCache(cache.folder))
    assert passes == [models, models[:1], models[1:]]
    for a, b, c in zip(without, first, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_texts_have_the_same_bits_in_any_order(
    models: list[DualEncoder], cache: EmbeddingCache, passes: list[list[DualEncoder]]
) -> None:
    without = embed_texts_cached(models[0], TEXTS, 4, None)
    assert torch.equal(embed_texts_cached(models[0], TEXTS, 4, cache), without)
    assert torch.equal(embed_texts_cached(models[0], TEXTS[::-1], 4, cache), without.flip(0))
    assert len(passes) == 2
    embed_texts_cached(models[0], [*TEXTS, "one more"], 4, cache)
    assert len(passes) == 3


def test_a_changed_weight_pool_size_precision_view_or_batch_is_another_key(
    models: list[DualEncoder], tiny: Callable[..., DualEncoder], cache: EmbeddingCache
) -> None:
    model = tiny("ggem", seed=2).eval()

    def key(other: DualEncoder, view: object = None, data: str = "d", batch: int = 6) -> Path:
        return cache.path(image_key(EmbeddingCache(), other, view or centre_of(other), data, batch))

    same = key(models[1])
    assert key(model) == same, "equal weights in another object"
    found = [same, key(models[0]), key(model, Centre(16, 24)), key(model, data="e"), key(model, batch=7)]
    found.append(key(at_resolution(model, 24)))
    model.precision = "bf16"
    found.append(key(model))
    model.precision = "fp32"
    model.config = dataclasses.replace(
        model.config, image=dataclasses.replace(model.config.image, mean=(0.5, 0.5, 0.5))
    )
    found.append(key(model))
    weight = model.image.trunk.blocks[1].mlp.fc2.bias
    with torch.no_grad():
        weight[3] += 1e-6
    found.append(key(model))
    assert len(set(found)) == len(found)


def test_a_changed_text_or_text_weight_is_another_key(tiny: Callable[..., DualEncoder], cache: EmbeddingCache) -> None:
    model = tiny("avg", seed=1).eval()

    def key(texts: list[str], batch: int = 4) -> Path:
        return cache.path(text_key(EmbeddingCache(), model, texts, batch))

    found = [key(["a", "b"]), key(["a", "c"]), key(["ab"]), key(["a", "b"], 5)]
    with torch.no_grad():
        model.image.trunk.pos_embed[0, 0, 0] += 1
    assert key(["a", "b"]) == found[0], "image weights don't matter to texts"
    with torch.no_grad():
        model.text.tower.ln_final.bias[0] += 1e-6
    found.append(key(["a", "b"]))
    model.tokenizer.context_length = 8
    model.tokenizer.__dict__.pop("_digest", None)
    found.append(key(["a", "b"]))
    assert len(set(found)) == len(found)


def test_a_changed_image_is_another_key(tmp_path: Path, colour_set: Path) -> None:
    identities = set()
    samples = colour_samples(8)
    for i in range(2):
        folder = tmp_path / str(i)
        samples[3][1]["png"] = samples[3][1]["png"][:-20] + bytes(20) if i else samples[3][1]["png"]
        write_tar(folder / "test/0.tar", samples)
        os.utime(folder / "test/0.tar", (1000 + i, 1000 + i))
        (folder / "test/nshards.txt").write_text("1")
        (folder / "dataset_type.txt").write_text("retrieval")
        identities.add(open_set(SetConfig(str(folder))).records.identity())
    assert len(identities) == 2


def test_folders_that_differ_in_pixels_alone_do_not_share_embeddings(
    models: list[DualEncoder], cache: EmbeddingCache, tmp_path: Path
) -> None:
    images = [png(colour) for colour in ((255, 0, 0), (0, 0, 255))]
    found = []
    for i, data in enumerate(images):
        place = tmp_path / str(i) / "a.png"
        place.parent.mkdir()
        place.write_bytes(data.ljust(max(map(len, images)), b"\0"))
        os.utime(place, (1000, 1000))
        records = FileRecords(place.parent, [Item("a.png", "test", label=0)])
        found.append(embed_set_cached(models[:1], records, CONFIG, cache)[0])
    assert len(list(cache.folder.iterdir())) == 2 and not torch.equal(*found)


def test_changes_between_calls_are_another_key_in_one_cache(
    tiny: Callable[..., DualEncoder], cache: EmbeddingCache
) -> None:
    model = tiny("ggem", seed=2).eval()

    def keys() -> tuple[Path, Path]:
        return cache.path(image_key(cache, model, centre_of(model), "d", 6)), cache.path(
            text_key(cache, model, ["a"], 6)
        )

    found = [keys()]
    assert keys() == found[0] and model.train() is model and keys() == found[0]
    with torch.no_grad():
        model.image.trunk.pos_embed[0, 0, 0] += 1e-6
    found.append(keys())
    model.image.pool.negatives = "shift"
    found.append(keys())
    model.image.pool.eps *= 2
    found.append(keys())
    assert len({images for images, _ in found}) == 4 and len({texts for _, texts in found}) == 1


def test_the_key_knows_all_code_that_embeds() -> None:
    package, room = Path(mmrep.__file__).parent, Path(embed_cached.__file__).parent
    known = {path for pattern in embed_cached._CODE for path in package.glob(pattern)}
    assert known >= set(room.glob("*.py")) and {"embed.py", "multiscale.py"} <= {path.name for path in known}


def test_digest_is_made_once_a_model(models: list[DualEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("mmrep.evaluation.embedding.cache.tower_digest", lambda tower: (calls.append(tower), "x")[1])
    cache = EmbeddingCache()
    for _ in range(3):
        image_key(cache, models[0], centre_of(models[0]), "d", 6)
    assert calls == [models[0].image]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_made_anew_with_a_warning(
    models: list[DualEncoder], records: Records, cache: EmbeddingCache, passes: list[list[DualEncoder]], damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (first,) = embed_set_cached(models[:1], records, CONFIG, cache)
    (path,) = cache.folder.iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes({"cut": data[:-1], "flipped": data, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, "mmrep"):
        (again,) = embed_set_cached(models[:1], records, CONFIG, cache)
    assert torch.equal(first, again) and len(passes) == 2
    assert [str(path) in record.message and "computed again" in record.message for record in caplog.records] == [True]
    assert torch.equal(embed_set_cached(models[:1], records, CONFIG, cache)[0], first) and len(passes) == 2


def key_of(name: str) -> Key:
    return {"kind": "test", "name": name}


def test_the_longest_unused_goes_first(tmp_path: Path) -> None:
    rows = torch.ones(100, 10)
    cache = EmbeddingCache(tmp_path, limit=3 * 4500)
    for age, name in enumerate("abc"):
        cache.put(key_of(name), rows)
        os.utime(cache.path(key_of(name)), (1000 + age, 1000 + age))
    assert cache.get(key_of("a")) is not None  # used now
    cache.put(key_of("d"), rows)
    assert [name for name in "abcd" if cache.get(key_of(name)) is not None] == ["a", "c", "d"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.limit


def test_what_can_not_be_kept_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    EmbeddingCache(tmp_path / "file" / "x").put(key_of("a"), torch.ones(2, 2))
    EmbeddingCache(tmp_path / "new", limit=8).put(key_of("a"), torch.ones(2, 2))
    assert ["are not cached" in caplog.messages[0], "MMREP_EMBEDDINGS_GB" in caplog.messages[1]] == [True, True]
    assert not (tmp_path / "new").exists()


def test_files_of_a_killed_process_go_after_a_day(tmp_path: Path) -> None:
    for name, age in (("old.part", 1000), ("new.part", None)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, None if age is None else (age, age))
    EmbeddingCache(tmp_path).put(key_of("a"), torch.ones(2, 2))
    assert {path.name for path in tmp_path.iterdir()} == {"new.part", EmbeddingCache(tmp_path).path(key_of("a")).name}


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_wrong_limit(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREP_EMBEDDINGS_GB", text)
    with pytest.raises(ConfigError, match="MMREP_EMBEDDINGS_GB: expected a number of GB"):
        EmbeddingCache()


def test_tower_digest_sees_types_names_and_buffers() -> None:
    module = torch.nn.BatchNorm1d(2)
    found = {tower_digest(module)}
    module.running_mean[0] = 1  # type: ignore[index]  # BatchNorm1d has one by default
    found.add(tower_digest(module))
    found.add(tower_digest(module.double()))
    found.add(tower_digest(module.to(torch.bfloat16)))
    assert len(found) == 4
