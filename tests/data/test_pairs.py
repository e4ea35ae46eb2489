"""Pairs: replacements of bad samples and kinds of caption are draws that nothing but (seed, slot) decides."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import colour_samples, png, write_tar

from mmrep.batch import Batch
from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig
from mmrep.data.captions import group_id
from mmrep.data.loader import Loaded, Phase, Plan, Steps, batches, wrap
from mmrep.data.pairs import Draws, keep_decoded
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.model.text_encoder import ClipTokenizer

PLAN = Plan(seed=3, global_batch=8, steps=6, phases=(Phase(0, (8, 8), (16, 16)),))
BAD = (5, 20, 37)
"""Of the 48 samples of three shards."""
REPLACED = {2: (37, 2), 33: (20, 15), 37: (5, 15)}
"""Slots of these: the sample scheduled, and the one used."""


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(16)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 16 samples, each with one whose image is cut off."""
    samples = colour_samples(48)
    for number in BAD:
        key, members = samples[number]
        samples[number] = (key, members | {"png": members["png"][:50]})
    for i in range(3):
        write_tar(tmp_path / "train" / f"{i}.tar", samples[16 * i : 16 * i + 16])
    return tmp_path / "train"


def build(config: DataConfig, tokenizer: ClipTokenizer, rank: int = 0, processes: int = 1) -> Steps:
    return Steps(Sources(config), config, tokenizer, PLAN, rank, processes)


def bad_slots(loaded: list[Loaded]) -> list[tuple[int, int]]:
    return [(bad.slot, bad.number) for step in loaded for bad in step.bad]


def ids(loaded: list[Loaded]) -> list[int]:
    return [number for step in loaded for number in step.batch.ids.tolist()]


def test_replacements_are_frozen(shards: Path, tokenizer: ClipTokenizer) -> None:
    steps = build(DataConfig([SourceConfig(str(shards))], max_bad_fraction=0.5), tokenizer)
    loaded = [steps.load(step) for step in range(PLAN.steps)]
    scheduled = steps.order.slots(0, 48)[1].tolist()
    found = {slot: (number, ids(loaded)[slot]) for slot, number in bad_slots(loaded)}
    assert found == REPLACED
    assert sorted(scheduled) == list(range(48))
    assert [used for slot, used in enumerate(ids(loaded)) if slot not in found] == [
        number for number in scheduled if number not in BAD
    ]
    assert all(len(step.batch.ids) == 8 for step in loaded)
    assert [steps.load(step).bad for step in (4, 0)] == [loaded[step].bad for step in (4, 0)]
    for step in loaded:
        for bad in step.bad:
            shard, key = f"{shards}/{bad.number // 16}.tar", f"{bad.number:06d}"
            assert bad.reason.startswith(f"{shard}: sample {key!r}, member 'png': can't decode image: ")


@pytest.mark.parametrize(("processes", "workers"), [(2, 0), (4, 0), (1, 2)])
def test_replacements_do_not_depend_on_processes_or_workers(
    shards: Path, tokenizer: ClipTokenizer, processes: int, workers: int
) -> None:
    config = DataConfig([SourceConfig(str(shards))], max_bad_fraction=0.5)
    whole = list(batches(build(config, tokenizer), 0, 0))
    parts = [list(batches(build(config, tokenizer, rank, processes), 0, workers)) for rank in range(processes)]
    for step, one in enumerate(whole):
        several = [part[step] for part in parts]
        assert [number for loaded in several for number in loaded.batch.ids.tolist()] == one.batch.ids.tolist()
        assert torch.equal(torch.cat([loaded.batch.images for loaded in several]), one.batch.images)
        assert [bad for loaded in several for bad in loaded.bad] == one.bad
        assert wrap(sum(int(loaded.checksum) for loaded in several)) == int(one.checksum)


def test_replacements_come_from_the_same_source(shards: Path, tokenizer: ClipTokenizer) -> None:
    train = [SourceConfig(str(shards / f"{i}.tar"), weight=weight) for i, weight in enumerate((0.5, 0.25, 0.25))]
    steps = build(DataConfig(train, max_bad_fraction=0.5), tokenizer)
    loaded = [steps.load(step) for step in range(PLAN.steps)]
    assert {5, 20} <= {number for _, number in bad_slots(loaded)}
    for slot, number in bad_slots(loaded):
        assert ids(loaded)[slot] // 16 == number // 16
    for step in loaded:
        assert (step.batch.ids // 16).bincount(minlength=3).tolist() == [4, 2, 2]


def test_replacements_come_from_the_same_block(shards: Path, tokenizer: ClipTokenizer) -> None:
    steps = build(DataConfig([SourceConfig(str(shards))], max_bad_fraction=0.5, shuffle_block=16), tokenizer)
    loaded = [steps.load(step) for step in range(PLAN.steps)]
    assert len(bad_slots(loaded)) >= len(BAD)
    for slot, number in bad_slots(loaded):  # a shard is a block here
        assert ids(loaded)[slot] // 16 == number // 16


def test_nothing_usable_is_an_error_that_names_the_first(tmp_path: Path, tokenizer: ClipTokenizer) -> None:
    path = write_tar(tmp_path / "0.tar", [(str(i), {"png": b"", "txt": b"a"}) for i in range(16)])
    steps = build(DataConfig([SourceConfig(str(path))], max_bad_fraction=0.5), tokenizer)
    with pytest.raises(
        DataError, match=r"member 'png': empty: 0 bytes; nor can any of the 16 samples drawn in"
    ) as error:
        steps.load(0)
    first = steps.order.slots(0, 1)[1].tolist()[0]
    assert str(error.value).startswith(f"{path}: sample '{first}', ")


def test_loaders_report_what_they_spent_and_skipped(shards: Path, tokenizer: ClipTokenizer) -> None:
    steps = build(DataConfig([SourceConfig(str(shards))], max_bad_fraction=0.5), tokenizer)
    seconds = steps.load(0).seconds
    assert seconds.decode > 0 and seconds.read > 0 and seconds.text > 0 and seconds.download == 0


def test_an_error_of_the_store_is_not_blamed_on_the_sample(
    shards: Path, tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig([SourceConfig(str(shards))], max_bad_fraction=0.5, decoded_gb=0.001)
    sources = Sources(config)
    store = keep_decoded(sources, config)
    assert store is not None
    steps = Steps(sources, config, tokenizer, PLAN, 0, 1, store)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mmrep.data.decoded.os.pwrite", full)
    with pytest.raises(ConfigError, match=f"^{store.path}: No space left on device"):
        steps.load(0)


MIXTURE = {"txt": 0.3, "json:synthetic": 0.7}


def captioned(count: int, lacking: int | None = None) -> list[tuple[str, dict[str, bytes]]]:
    """Samples with a text and, but for one of them, a synthetic caption that two of them share."""
    samples = []
    for i in range(count):
        members = {"png": png((i, i, i)), "txt": f"plain {i}".encode()}
        if i != lacking:
            members["json"] = f'{{"synthetic": "synthetic {i // 2}"}}'.encode()
        samples.append((f"{i:04d}", members))
    return samples


def captions(steps: Steps, slots: int) -> list[tuple[int, str, int]]:
    """Number, caption and group of each slot."""
    found = []
    group, position = (part.tolist() for part in steps.order.slots(0, slots))
    draws = Draws.of(PLAN.seed, 0, slots, 0.0)
    for slot in range(slots):
        pair = steps.pairs.load(slot, group[slot], position[slot], draws, slot, (4, 4))
        found.append((pair.number, pair.caption.text, pair.caption.group))
    return found


def test_a_mixture_of_captions_keeps_its_shares(tmp_path: Path, tokenizer: ClipTokenizer) -> None:
    path = write_tar(tmp_path / "0.tar", captioned(100))
    steps = build(DataConfig([SourceConfig(str(path), caption=MIXTURE)]), tokenizer)
    drawn = captions(steps, 1000)
    kinds = Counter(text.split()[0] for _, text, _ in drawn)
    assert kinds == {"plain": 289, "synthetic": 711}
    assert abs(kinds["plain"] - 300) < 3 * (1000 * 0.3 * 0.7) ** 0.5
    assert "".join(text[0] for _, text, _ in drawn[:20]) == "sppssssssssspsssssss"
    for number, text, group in drawn:
        assert text in (f"plain {number}", f"synthetic {number // 2}")
        assert group == group_id(text)
    both: dict[int, set[str]] = {}
    for number, text, _ in drawn:
        both.setdefault(number, set()).add(text.split()[0])
    assert sum(len(kinds) == 2 for kinds in both.values()) > 80  # the kind is drawn anew in every epoch


def test_equal_captions_of_a_batch_share_a_group(tmp_path: Path, tokenizer: ClipTokenizer) -> None:
    path = write_tar(tmp_path / "0.tar", captioned(8))
    steps = build(DataConfig([SourceConfig(str(path), caption="json:synthetic")]), tokenizer)
    batch: Batch = steps.load(0).batch
    same = batch.groups[:, None] == batch.groups[None]
    assert torch.equal(same, (batch.ids[:, None] // 2) == (batch.ids[None] // 2))


def test_the_order_of_kinds_matters_not_for_samples_but_for_the_draw(tmp_path: Path, tokenizer: ClipTokenizer) -> None:
    path = write_tar(tmp_path / "0.tar", captioned(20))

    def drawn(caption: Any) -> list[tuple[int, str, int]]:
        return captions(build(DataConfig([SourceConfig(str(path), caption=caption)]), tokenizer), 20)

    assert drawn({"txt": 3, "json:synthetic": 7}) == drawn(MIXTURE)
    assert [number for number, *_ in drawn("txt")] == [number for number, *_ in drawn(MIXTURE)]
    assert drawn({"txt": 1.0}) == drawn("txt")


def test_a_sample_without_the_kind_drawn_is_bad(tmp_path: Path, tokenizer: ClipTokenizer) -> None:
    path = write_tar(tmp_path / "0.tar", captioned(8, lacking=6))
    source = SourceConfig(str(path), caption=MIXTURE)
    steps = build(DataConfig([source], max_bad_fraction=0.5), tokenizer)
    bad = [bad for step in range(PLAN.steps) for bad in steps.load(step).bad]
    assert {each.number for each in bad} == {6}
    assert {each.reason for each in bad} == {f"{path}: sample '0006' has no member 'json' (it has png, txt)"}
    assert 0 < len(bad) < PLAN.steps  # where its text was drawn, it is used
    with pytest.raises(DataError, match="sample '0006' has no member 'json'"):
        list(batches(build(DataConfig([source]), tokenizer), 0, 0))
