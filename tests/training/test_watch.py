"""Samples that can't be used: named, counted across resumes, budgeted; and which part of loading is too slow."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import colour_samples, write_tar

from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.config.tree import TrainConfig
from mmrep.data.loader import Loaded, Phase, Plan, Steps
from mmrep.data.pairs import Bad, Seconds
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.model.text_encoder import ClipTokenizer
from mmrep.training import watch
from mmrep.training.checkpoint import list_checkpoints
from mmrep.training.trainer import train
from mmrep.training.watch import DataWatch, Span, diagnosis

Recipe = Callable[..., TrainConfig]
BAD = (5, 20, 37)
"""Of 48 samples, of which a run of 64 pairs takes each at least once."""


@pytest.fixture
def damaged(recipe: Recipe, tmp_path: Path) -> Recipe:
    """`damaged("name", 0.5, …)`: a run on samples three of which are cut off, so many of which are allowed."""
    samples = colour_samples(48)
    for number in BAD:
        key, members = samples[number]
        samples[number] = (key, members | {"png": members["png"][:50]})
    shard = str(write_tar(tmp_path / "shards" / "0.tar", samples))

    def build(name: str, allowed: float, **parts: Any) -> TrainConfig:
        data = {"max_bad_fraction": allowed, "validation": ValidationConfig(0.0)} | parts.pop("data", {})
        return recipe(name, source={"shards": shard}, data=data, evaluation={"sets": []}, **parts)

    return build


def metrics(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]


def written(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"bad_samples.rank{rank}.jsonl").read_text().splitlines()]


def test_within_the_budget_all_are_named_and_counted(damaged: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    config = damaged("run", 0.5)
    run = train(config, "")
    bad = written(run)
    assert {each["number"] for each in bad} == set(BAD)
    assert all(each.keys() == {"slot", "number", "reason"} and each["slot"] < 64 for each in bad)
    assert all(
        f"0.tar: sample '{each['number']:06d}', member 'png': can't decode image: " in each["reason"] for each in bad
    )
    assert json.loads((run / "summary.json").read_text())["bad_samples"] == len(bad)
    for line in metrics(config):
        assert line["bad_samples"] == sum(each["slot"] < 8 * line["step"] for each in bad)
        assert 0 <= line["data_wait"] <= 1
    said = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert said == [f"skipped, another sample takes its place: {each['reason']}" for each in bad]


def test_past_the_budget_the_run_ends_in_one_line(damaged: Recipe) -> None:
    within = damaged("within", 0.5)
    train(within, "")
    second = next(line["step"] for line in metrics(within) if line["bad_samples"] >= 2)
    config = damaged("past", 1e-4)  # one in the first 10,000
    with pytest.raises(DataError, match=r"could not be used, more than data\.max_bad_fraction 0\.0001 allows") as error:
        train(config, "")
    assert "\n" not in str(error.value)
    assert f"of the last {8 * second} samples" in str(error.value)
    assert f"{config.output_dir}/bad_samples.rank*.jsonl" in str(error.value)
    assert len(metrics(config)) == second - 1
    assert not (Path(config.output_dir) / "summary.json").exists()


def test_by_default_the_first_one_ends_the_run(damaged: Recipe) -> None:
    config = damaged("run", 0.0)
    with pytest.raises(DataError, match=r"0\.tar: sample '0000\d\d', member 'png': can't decode image: [^\n]*$"):
        train(config, "")
    assert not list(Path(config.output_dir).glob("bad_samples*"))
    good = damaged(
        "good", 0.0, data={"train": [SourceConfig(str(Path(config.data.train[0].shards).with_name("1.tar")))]}
    )
    write_tar(Path(good.data.train[0].shards), colour_samples(48))
    train(good, "")
    assert all("bad_samples" not in line and 0 <= line["data_wait"] <= 1 for line in metrics(good))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_counts_as_one(damaged: Recipe, workers: int) -> None:
    whole = train(damaged("whole", 0.5), "")
    config = damaged("part", 0.5, data={"workers": workers})
    run = train(config, "")
    (run / "summary.json").unlink()
    newest = list_checkpoints(run)[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    with (run / "bad_samples.rank0.jsonl").open("a") as file:
        file.write('{"slot": 63, "num')  # as a kill leaves it
    train(dataclasses.replace(config, resume="auto"), "")
    assert written(run) == written(whole)
    assert len({each["slot"] for each in written(run)}) == len(written(run))
    summaries = [json.loads((each / "summary.json").read_text())["bad_samples"] for each in (whole, run)]
    assert summaries[0] == summaries[1] == len(written(whole))


@pytest.fixture
def steps(colour_set: Path) -> Callable[[float], Steps]:
    """Batches of four pairs; the share that may be bad."""

    def build(allowed: float) -> Steps:
        config = DataConfig([SourceConfig(str(colour_set / "train"))], max_bad_fraction=allowed)
        plan = Plan(0, 4, 10_000, (Phase(0, (8, 8), (4, 4)),))
        return Steps(Sources(config), config, ClipTokenizer(16), plan, 0, 1)

    return build


def watched(steps: Steps, folder: Path, state: dict[str, int] | None = None, first: int = 0) -> DataWatch:
    return DataWatch(steps, folder, torch.device("cpu"), 2, first, state)


def batch(steps: Steps, bad: int = 0, slot: int = 0) -> Loaded:
    return steps.load(0)._replace(bad=[Bad(slot, i, f"shard: sample {i}") for i in range(bad)])


def test_the_budget_is_a_share_of_a_span(
    steps: Callable[[float], Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SPAN", 100)
    ours = steps(0.1)
    good, ten, one = batch(ours), batch(ours, 10), batch(ours, 1)
    counts = watched(ours, tmp_path)
    counts.arrived(ten, 0.0)
    assert counts.report(1.0)["bad_samples"] == 10  # of 4 pairs, but a span is 100
    state = counts.counts()
    counts.arrived(one, 0.0)
    with pytest.raises(DataError, match="^11 of the last 8 samples could not be used"):
        counts.report(1.0)
    # A resumed run goes on with the counts of its checkpoint.
    again = watched(ours, tmp_path, state, first=1)
    again.arrived(one, 0.0)
    with pytest.raises(DataError, match="^11 of the last 8 samples could not be used"):
        again.report(1.0)
    # Past ten spans counting starts anew: nothing of the 100 that 1,000 pairs were allowed is left over.
    late = watched(ours, tmp_path, state, first=1)
    for _ in range(249):
        late.arrived(good, 0.0)
    assert late.report(1.0)["bad_samples"] == 10
    assert late.counts() == {"bad": 10, "span_bad": 0, "span_pairs": 0}
    late.arrived(ten, 0.0)
    assert late.report(1.0)["bad_samples"] == 20
    late.arrived(one, 0.0)
    with pytest.raises(DataError, match="^11 of the last 8 samples"):
        late.report(1.0)


def test_within_a_long_span_the_share_counts(
    steps: Callable[[float], Steps], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SPAN", 100)
    ours = steps(0.1)
    counts = watched(ours, tmp_path, {"bad": 50, "span_bad": 50, "span_pairs": 496}, first=124)
    counts.arrived(batch(ours), 0.0)
    assert counts.report(1.0)["bad_samples"] == 50
    counts.arrived(batch(ours, 1), 0.0)
    with pytest.raises(DataError, match="^51 of the last 504 samples"):
        counts.report(1.0)


def test_without_a_budget_nothing_is_counted(steps: Callable[[float], Steps], tmp_path: Path) -> None:
    none = watched(steps(0.0), tmp_path)
    assert none.report(1.0) == {"data_wait": 0.0}
    assert none.counts() == {"bad": 0, "span_bad": 0, "span_pairs": 0}


def test_warnings_are_capped_and_the_file_is_not(
    steps: Callable[[float], Steps], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = steps(0.5)
    counts = watched(ours, tmp_path)
    counts.arrived(batch(ours, 15), 0.0)
    counts.arrived(batch(ours, 15), 0.0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 20 and "in the file only" not in "".join(said[:19])
    assert said[19].endswith("; further ones are in the file only")
    assert len(written(tmp_path)) == 30 and counts.counts()["bad"] == 30


def test_what_comes_again_is_dropped_from_every_file(steps: Callable[[float], Steps], tmp_path: Path) -> None:
    for rank in (0, 3):
        lines = [json.dumps({"slot": slot, "number": 1, "reason": "é"}) + "\n" for slot in (rank, 40 + rank)]
        (tmp_path / f"bad_samples.rank{rank}.jsonl").write_text("".join(lines), encoding="utf-8")
    watched(steps(0.5), tmp_path, first=10)
    assert [each["slot"] for rank in (0, 3) for each in written(tmp_path, rank)] == [0, 3]


def test_waiting_is_measured_and_said_now_and_then(
    steps: Callable[[float], Steps], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ours = steps(0.0)
    slow = batch(ours)._replace(seconds=Seconds(decode=30.0))
    counts = watched(ours, tmp_path)
    for expected in (0, 1, 1):  # the loader's start is no sign; afterwards once in ten minutes
        counts.arrived(slow, 9.0)
        assert counts.report(20.0) == {"data_wait": 0.45}
        assert sum("training waits for data 45%" in record.getMessage() for record in caplog.records) == expected
    fast = watched(ours, tmp_path)
    for _ in range(3):
        fast.arrived(slow, 1.0)
        fast.report(20.0)
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("loading", "workers", "expected"),
    [
        (Seconds(download=12, decode=6), 2, "mostly download: shards arrive slower than they are used"),
        (Seconds(read=12, decode=6), 2, "mostly read: the disk is slow"),
        (Seconds(read=2, decode=16), 2, "mostly decode: raise data.workers"),
        (Seconds(text=12, decode=6), 2, "mostly text: tokenising is the bottleneck"),
        (Seconds(read=2, decode=4), 2, "mostly queue: batches are ready late though the loaders are idle"),
        (Seconds(read=0.5, decode=2), 0, "mostly decode"),
    ],
)
def test_diagnosis(loading: Seconds, workers: int, expected: str) -> None:
    said = diagnosis(Span(10.0, 4.0), loading, workers)
    assert said.startswith("training waits for data 40% of the time (") and expected in said
    assert ("2 loader processes are busy" if workers else "no loader processes") in said


def test_diagnosis_names_shares() -> None:
    said = diagnosis(Span(10.0, 10.5), Seconds(download=2, read=0.01, decode=8, text=10), 2)
    assert "100% of the time (2 loader processes are busy 100% of it: download 10%, decode 40%, text 50%)" in said
