"""Whole training runs on a tiny model: what is written, resuming, signals, damaged checkpoints, precision."""

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmrep
from mmrep.config.checks import ConfigError
from mmrep.config.tree import TrainConfig
from mmrep.training.checkpoint import Diverged, list_checkpoints
from mmrep.training.signals import Stopped
from mmrep.training.trainer import train

Recipe = Callable[..., TrainConfig]


def lines(run: Path, evaluations: bool = False) -> list[dict[str, Any]]:
    """The metrics of a run without its speed."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in found if ("evaluation" in line) == evaluations]
    return [
        {key: value for key, value in line.items() if key not in ("time", "pairs_per_s", "data_wait")} for line in kept
    ]


def resumed(config: TrainConfig, **changes: Any) -> TrainConfig:
    return dataclasses.replace(config, resume="auto", **changes)


def test_a_run_writes_everything(recipe: Recipe) -> None:
    config = recipe(training={"evaluate_every": 4})
    run = train(config, "again")
    assert [line["step"] for line in lines(run)] == list(range(1, 9))
    assert all(math.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in lines(run))
    assert [line["lr"] for line in lines(run)][:3] == [0.0005, 0.001, 0.001]
    assert [line["step"] for line in lines(run, evaluations=True)] == [4, 8]
    assert set(lines(run, evaluations=True)[0]["evaluation"]) >= {"validation/image_retrieval_recall@1"}
    results = json.loads((run / "results.json").read_text())
    assert results["schema"] == 1
    assert {(r["dataset"], r["task"], r["n"]) for r in results["results"]} == {
        ("colours", "zeroshot", 16),
        ("pairs", "retrieval", 16),
    }
    assert {p.name for p in (run / "outcomes").rglob("*.npz")} == {"colours.npz", "pairs.npz"}
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["cost"]) == {"params", "gmacs", "pairs_per_s", "images_per_s", "peak_mb"}
    model = mmrep.load(run)
    assert summary["cost"]["params"] == sum(p.numel() for p in model.parameters())
    assert [p.name for p in list_checkpoints(run)] == ["step_00000004", "step_00000008"]
    weights = mmrep.load(run / "checkpoints" / "step_00000008").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_training_learns_to_tell_colours(recipe: Recipe) -> None:
    config = recipe(
        source={"caption": "cls"}, training={"steps": 40, "global_batch": 16, "checkpoint_steps": 0}, optim={"lr": 3e-3}
    )
    run = train(config, "again")
    metrics = json.loads((run / "results.json").read_text())["results"][0]["metrics"]
    assert metrics["acc1"] >= 0.75  # chance is 0.25


def test_the_same_seed_gives_the_same_run_and_another_does_not(recipe: Recipe) -> None:
    first, second = train(recipe("a"), ""), train(recipe("b"), "")
    assert lines(first) == lines(second)
    assert lines(train(recipe("c", seed=1), "")) != lines(first)


def test_resume_continues_exactly(recipe: Recipe) -> None:
    whole = train(recipe("whole"), "")
    part = recipe("part")
    train(dataclasses.replace(part, training=dataclasses.replace(part.training, steps=8)), "")
    for leftover in ("summary.json", "results.json"):
        (Path(part.output_dir) / leftover).unlink()
    newest = list_checkpoints(Path(part.output_dir))[-1]
    assert newest.name == "step_00000008"
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    again = train(resumed(part), "")
    assert lines(again) == lines(whole)
    summaries = [json.loads((run / "summary.json").read_text()) for run in (whole, again)]
    assert summaries[0]["batches"] == summaries[1]["batches"]
    assert summaries[0]["model_digest"] == summaries[1]["model_digest"]


def test_a_run_killed_in_its_last_evaluation_is_finished(recipe: Recipe) -> None:
    config = recipe()
    run = train(config, "")
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    train(resumed(config), "")
    after = json.loads((run / "summary.json").read_text())
    assert after["cost"]["pairs_per_s"] == pytest.approx(before["cost"]["pairs_per_s"], abs=0.02)
    assert all(value > 0 for value in after["cost"].values())
    assert (after["batches"], after["model_digest"]) == (before["batches"], before["model_digest"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(recipe: Recipe, number: signal.Signals) -> None:
    whole = train(recipe("whole"), "")
    config = recipe("stopped", training={"checkpoint_steps": 0})
    metrics = Path(config.output_dir) / "metrics.jsonl"

    def interrupt() -> None:
        while not metrics.is_file() or metrics.read_text().count("\n") < 3:
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match=f"stopped by {number.name} after step .*\n  mmrep train --resume auto"):
        train(config, "mmrep train --resume auto")
    thread.join()
    assert len(list_checkpoints(Path(config.output_dir))) == 1
    assert lines(train(resumed(config), "")) == lines(whole)


def test_a_finished_run_is_left_alone(recipe: Recipe) -> None:
    config = recipe()
    run = train(config, "")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    train(resumed(config), "")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_run_is_never_overwritten(recipe: Recipe) -> None:
    train(recipe(), "")
    with pytest.raises(ConfigError, match="already holds a run: continue it with --resume auto"):
        train(recipe(), "")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"training": {"global_batch": 4}}, "global_batch was 8, is 4"),
        ({"data": {"flip": 0.5}}, "transform.flip was 0.0, is 0.5"),
        ({"source": {"caption": "json:caption"}}, "captions was"),
    ],
)
def test_resuming_on_other_data_is_refused_and_named(recipe: Recipe, changes: dict[str, Any], named: str) -> None:
    run = train(recipe(), "")
    (run / "summary.json").unlink()
    with pytest.raises(ConfigError, match=f"made with other data: {named}"):
        train(resumed(recipe(**changes)), "")


def test_resuming_on_changed_shards_is_refused(recipe: Recipe, colour_set: Path, tmp_path: Path) -> None:
    from conftest import colour_samples, write_tar

    folder = tmp_path / "shards"
    write_tar(folder / "0.tar", colour_samples(16))
    run = train(recipe(source={"shards": str(folder)}), "")
    (run / "summary.json").unlink()
    write_tar(folder / "0.tar", colour_samples(17))
    with pytest.raises(
        ConfigError, match=r"other data: samples was \d+, is \d+ \(0/0\.tar had 16 samples, has 17\); restore it"
    ):
        train(resumed(recipe(source={"shards": str(folder)})), "")


def test_a_damaged_checkpoint_is_passed_over(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(recipe("whole"), "")
    config = recipe("damaged")
    run = train(config, "")
    (run / "summary.json").unlink()
    weights = list_checkpoints(run)[-1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    again = train(resumed(config), "")
    assert "model.safetensors differs from its digest" in caplog.text
    assert lines(again) == lines(whole)


def test_checkpoint_of_another_model_is_refused(recipe: Recipe) -> None:
    run = train(recipe(), "")
    (run / "summary.json").unlink()
    with pytest.raises(
        ConfigError, match=r"model.pool.name = ggem, not avg: restore it, .* insist with --resume_changes allow$"
    ):
        train(resumed(recipe(model={"pool": "avg"})), "")


def test_divergence_is_said_plainly(recipe: Recipe) -> None:
    config = recipe(optim={"lr": 1e30, "warmup": 0, "clip_norm": None}, training={"steps": 8, "checkpoint_steps": 0})
    with pytest.raises(Diverged, match=r"the loss is nan at step \d: lower optim.lr"):
        train(config, "")
    assert not (Path(config.output_dir) / "final").exists()


@pytest.mark.parametrize(
    "parts",
    [
        {"training": {"precision": "bf16"}},
        {"training": {"grad_checkpointing": True}},
        {"loss": {"kind": "sigmoid"}},
        {"data": {"workers": 2}},
    ],
)
def test_variants_train_and_resume(recipe: Recipe, parts: dict[str, Any]) -> None:
    config = recipe("variant", **parts)
    run = train(config, "")
    first = lines(run)
    for leftover in (run / "summary.json", list_checkpoints(run)[-1] / "manifest.json"):
        leftover.unlink()
    assert lines(train(resumed(config), "")) == first


def test_workers_do_not_change_the_run(recipe: Recipe) -> None:
    assert lines(train(recipe("a", data={"workers": 0}), "")) == lines(train(recipe("b", data={"workers": 2}), ""))


def test_patch_dropout_trains(recipe: Recipe) -> None:
    config = recipe(model={"pool": "avg"})
    image = dataclasses.replace(config.model.image, patch_dropout=0.5)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    assert len(lines(train(config, ""))) == 8


def test_micro_batch_must_make_up_the_global_batch(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="4 × 1 processes = 4 pairs, but global_batch is 8"):
        train(recipe(training={"micro_batch": 4}), "")


def test_the_logit_scale_is_clamped_after_every_step(recipe: Callable[..., TrainConfig]) -> None:
    """It starts at 1/0.07, above the limit."""
    config = recipe(loss={"max_logit_scale": 5.0}, training={"steps": 2, "log_every": 1}, evaluation={"sets": []})
    found = [line["logit_scale"] for line in lines(train(config, "again"))]
    assert found[0] == pytest.approx(5.0) and found[1] < 5.001
