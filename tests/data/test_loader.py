"""The batch of a step is a pure function of (seed, step): not of processes, workers or restarts."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import colour_samples, png, write_tar

from mmrep.batch import Batch
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.data.loader import Loaded, Phase, Plan, Steps, batches, checksum, data_state, default_workers, wrap
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.model.text_encoder import ClipTokenizer

PLAN = Plan(seed=3, global_batch=8, steps=10, phases=(Phase(0, (8, 8), (16, 6)),))
WHOLE = (Phase(0, (8, 8), (16, 16)),)
"""Without patch dropout."""


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(16)


@pytest.fixture
def config(colour_set: Path) -> DataConfig:
    return DataConfig([SourceConfig(f"{colour_set}/train")], min_scale=0.3, flip=0.5)


def build(config: DataConfig, tokenizer: ClipTokenizer, plan: Plan = PLAN, rank: int = 0, processes: int = 1) -> Steps:
    return Steps(Sources(config), config, tokenizer, plan, rank, processes)


def same(a: Batch, b: Batch) -> bool:
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def joined(parts: list[Batch]) -> Batch:
    """The batches of all processes as one; their texts may have been cut to different lengths."""
    longest = max(part.tokens.shape[1] for part in parts)
    padded = [
        part._replace(tokens=torch.nn.functional.pad(part.tokens, (0, longest - part.tokens.shape[1])))
        for part in parts
    ]
    return Batch(*(torch.cat(fields) for fields in zip(*padded, strict=True)))


def test_batch_contract(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    batch = build(config, tokenizer).load(0).batch
    assert batch.images.shape == (8, 3, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.tokens.shape[0] == 8 and batch.tokens.shape[1] in (8, 16)
    assert (batch.tokens.gather(1, batch.lengths[:, None] - 1) == 49407).all()
    assert batch.kept is not None and batch.kept.shape == (8, 6)
    assert (batch.kept.diff(dim=1) > 0).all() and batch.kept.max() < 16
    assert set(batch.captions.tolist()) <= {0, 1}


def test_pairs_belong_together(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    """Sample i of the colour set is of colour i % 4, and its caption says so."""
    steps = build(config, tokenizer)
    for step in range(6):
        batch = steps.load(step).batch
        for i, number in enumerate(batch.ids.tolist()):
            name = ["red", "green", "blue", "yellow"][number % 4]
            text = [f"a {name} square number {number}", f"picture {number} of something {name}"][batch.captions[i]]
            expected, lengths = tokenizer.batch([text])
            length = int(lengths[0])
            assert batch.lengths[i] == length
            assert torch.equal(batch.tokens[i, :length], expected[0, :length])
            mean = batch.images[i].float().mean((1, 2))
            bright = (mean > mean.max() / 2).tolist()
            assert bright == {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1], "yellow": [1, 1, 0]}[name]


def test_every_epoch_holds_every_sample_once(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    steps = build(config, tokenizer)
    ids = torch.cat([steps.load(step).batch.ids for step in range(6)])
    assert sorted(ids.tolist()) == list(range(48))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_processes_share_the_batch_of_one(config: DataConfig, tokenizer: ClipTokenizer, processes: int) -> None:
    whole = build(config, tokenizer)
    parts = [build(config, tokenizer, rank=rank, processes=processes) for rank in range(processes)]
    for step in (0, 5, 6, 9):
        one = whole.load(step)
        several = [part.load(step) for part in parts]
        assert same(joined([part.batch for part in several]), one.batch)
        assert wrap(sum(int(part.checksum) for part in several)) == int(one.checksum)


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_batches_are_those_of_one_run_for_any_workers(
    config: DataConfig, tokenizer: ClipTokenizer, workers: int
) -> None:
    steps = build(config, tokenizer)
    expected = [steps.load(step) for step in range(PLAN.steps)]
    for first in (0, 7):
        got = list(batches(build(config, tokenizer), first, workers))
        assert len(got) == PLAN.steps - first
        for one, other in zip(got, expected[first:], strict=True):
            assert same(one.batch, other.batch)
            assert torch.equal(one.checksum, other.checksum)


def test_a_loaded_step_does_not_depend_on_what_was_loaded_before(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    steps = build(config, tokenizer)
    forward = [steps.load(step).batch for step in range(4)]
    assert all(same(steps.load(step).batch, forward[step]) for step in (3, 1, 0, 2))


def test_seeds_give_other_batches(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    a, b = (build(config, tokenizer, PLAN._replace(seed=seed)).load(0) for seed in (0, 1))
    assert a.batch.ids.tolist() != b.batch.ids.tolist()
    assert int(a.checksum) != int(b.checksum)


def test_captions_and_crops_change_with_the_epoch(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    steps = build(config, tokenizer, PLAN._replace(steps=12))
    seen: list[dict[int, Any]] = [{}, {}]
    for step in range(12):
        batch = steps.load(step).batch
        assert batch.kept is not None
        for i, number in enumerate(batch.ids.tolist()):
            seen[step // 6][number] = (int(batch.captions[i]), batch.images[i].tolist(), batch.kept[i].tolist())
    for part in range(3):
        assert any(seen[0][number][part] != seen[1][number][part] for number in range(48))


def test_order_and_crops_are_frozen(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    batch = build(config, tokenizer).load(5).batch
    assert batch.ids.tolist() == [4, 15, 35, 26, 47, 0, 19, 7]
    assert batch.captions.tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert batch.kept is not None
    assert batch.kept[0].tolist() == [2, 3, 8, 9, 12, 15]


def test_resize_crop_is_not_random_but_flips(config: DataConfig, tokenizer: ClipTokenizer, colour_set: Path) -> None:
    plain = DataConfig(config.train, crop="resize")
    one, other = (build(plain, tokenizer, PLAN._replace(steps=12)).load(step).batch for step in (0, 6))
    first = dict(zip(one.ids.tolist(), one.images, strict=True))
    shared = [i for i, number in enumerate(other.ids.tolist()) if number in first]
    assert shared
    assert all(torch.equal(first[int(other.ids[i])], other.images[i]) for i in shared)
    flipped = build(DataConfig(config.train, crop="resize", flip=1.0), tokenizer).load(0).batch
    assert torch.equal(flipped.images, one.images.flip(3))


def test_no_patch_dropout_keeps_no_list(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    assert build(config, tokenizer, PLAN._replace(phases=WHOLE)).load(0).batch.kept is None


def test_validation_samples_are_never_drawn(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    steps = build(DataConfig(config.train, ValidationConfig(fraction=0.3)), tokenizer)
    held = {sample.shard.sample(sample.row) for sample in steps.sources.held_out(100)}
    assert len(held) > 5
    drawn = [steps.sources.sample(n) for step in range(10) for n in steps.load(step).batch.ids.tolist()]
    assert len({sample.number for sample in drawn}) == 48 - len(held)
    assert not held & {sample.shard.sample(sample.row) for sample in drawn}


def test_weights_are_followed(colour_set: Path, tokenizer: ClipTokenizer) -> None:
    train = [SourceConfig(f"{colour_set}/train/{i}.tar", weight=weight) for i, weight in enumerate((0.5, 0.25, 0.25))]
    steps = build(DataConfig(train), tokenizer)
    for step in range(4):
        shards = (steps.load(step).batch.ids // 16).bincount(minlength=3)
        assert shards.tolist() == [4, 2, 2]


def test_checksum_sees_every_pixel_token_and_choice(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    batch = build(config, tokenizer).load(0).batch
    base = int(checksum(batch, 0))
    assert int(checksum(batch, 0)) == base

    def changed(field: str, *place: int) -> Batch:
        values = getattr(batch, field).clone()
        values[place] += 1
        return batch._replace(**{field: values})

    others = [
        checksum(batch, 8),
        checksum(changed("images", 0, 0, 0, 0), 0),
        checksum(changed("images", 7, 2, 7, 7), 0),
        checksum(changed("tokens", 3, 1), 0),
        checksum(changed("ids", 2), 0),
        checksum(changed("captions", 4), 0),
        checksum(changed("kept", 5, 0), 0),
        checksum(Batch(*(None if field is None else field.flip(0) for field in batch)), 0),
    ]
    assert len({base, *(int(other) for other in others)}) == len(others) + 1


def test_checksum_does_not_depend_on_padding(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    batch = build(config, tokenizer).load(0).batch
    padded = batch._replace(tokens=torch.nn.functional.pad(batch.tokens, (0, 5)))
    assert torch.equal(checksum(batch, 0), checksum(padded, 0))


@pytest.mark.parametrize(
    ("total", "expected"), [(0, 0), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 + 5, 5), (-1, -1)]
)
def test_wrap(total: int, expected: int) -> None:
    assert wrap(total) == expected
    assert torch.tensor([wrap(total)]).item() == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_stops_with_one_line(tmp_path: Path, tokenizer: ClipTokenizer, workers: int) -> None:
    samples = colour_samples(16)
    samples[11] = ("bad", {"png": png((1, 2, 3))[:60], "txt": b"x"})
    config = DataConfig([SourceConfig(str(write_tar(tmp_path / "s.tar", samples)))])
    steps = build(config, tokenizer, PLAN._replace(phases=WHOLE, global_batch=4, steps=4))
    good: list[Loaded] = []
    with pytest.raises(DataError) as error:
        for loaded in batches(steps, 0, workers):
            good.append(loaded)  # noqa: PERF402  # what came before the error counts
    assert type(error.value) is DataError
    assert str(error.value).startswith(f"{tmp_path}/s.tar: sample 'bad', member 'png': can't decode image: ")
    assert "\n" not in str(error.value)
    place = steps.order.slots(0, 16)[1].tolist().index(11)
    assert len(good) == place // 4
    # `error` keeps the traceback, and with it the loader.
    assert not multiprocessing.active_children(), "the loader's workers have ended"


def test_data_state_tells_runs_apart(config: DataConfig, tokenizer: ClipTokenizer, colour_set: Path) -> None:
    def state(tokens: ClipTokenizer = tokenizer, plan: Plan = PLAN, **fields: Any) -> str:
        return repr(data_state(build(DataConfig(**{"train": config.train, **fields}), tokens, plan)))

    base = state()
    assert state() == base
    others = [
        state(train=[SourceConfig(f"{colour_set}/train/{{0,1}}.tar")]),
        state(train=[SourceConfig(f"{colour_set}/train", caption="cls")]),
        state(train=[SourceConfig(f"{colour_set}/train", weight=1.5)]),
        state(validation=ValidationConfig(fraction=0.2)),
        state(min_scale=0.5),
        state(flip=0.1),
        state(crop="resize"),
        state(plan=PLAN._replace(seed=4)),
        state(plan=PLAN._replace(global_batch=4)),
        state(plan=PLAN._replace(phases=(Phase(0, (16, 16), (16, 6)),))),
        state(plan=PLAN._replace(phases=(Phase(0, (8, 8), (16, 7)),))),
        state(tokens=ClipTokenizer(24)),
    ]
    assert len({base, *others}) == len(others) + 1


def test_data_state_allows_what_changes_no_batch(config: DataConfig, tokenizer: ClipTokenizer) -> None:
    base = data_state(build(config, tokenizer))
    other = DataConfig(config.train, min_scale=0.3, flip=0.5, workers=3, prefetch=5)
    assert data_state(build(other, tokenizer, PLAN._replace(steps=99), rank=1, processes=2)) == base


def test_default_workers_leave_cores_free() -> None:
    few = [default_workers(processes) for processes in (1, 2, 10_000)]
    assert all(0 <= workers <= 8 for workers in few)
    assert few[-1] == 0
