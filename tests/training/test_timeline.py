"""A run's time line: what is kept, what is set aside, where a run goes on, and what it refuses to go on with."""

import dataclasses
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmrep.config.checks import ConfigError
from mmrep.config.tree import TrainConfig
from mmrep.data.tar import DataError
from mmrep.files import WriteError
from mmrep.training import trainer
from mmrep.training.build import Run
from mmrep.training.checkpoint import Diverged, list_checkpoints, load_checkpoint, save_checkpoint
from mmrep.training.signals import Stopped
from mmrep.training.trainer import train

Recipe = Callable[..., TrainConfig]


def steps_of(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def rates_of(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if "loss" in line]


def names(places: list[Path]) -> list[str]:
    return [place.name for place in places]


@pytest.mark.parametrize("kind", ["error", "signal"])
def test_what_fails_after_the_last_step_costs_no_training(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level(logging.INFO)
    config = recipe(training={"checkpoint_steps": 0}, data={"workers": 0})
    run, real = Path(config.output_dir), trainer.evaluate

    def fail(models: Any, sets: Any, *args: Any) -> Any:
        if sets and sets[0].name == "colours":
            if kind == "error":
                raise DataError("test/0.tar: gone")
            os.kill(os.getpid(), signal.SIGTERM)
        return real(models, sets, *args)

    monkeypatch.setattr(trainer, "evaluate", fail)
    expected = (DataError, "gone") if kind == "error" else (Stopped, "after the last step, the trained model is kept")
    with pytest.raises(expected[0], match=expected[1]):
        train(config, "the command")
    assert (run / "final" / "model.safetensors").is_file()
    assert names(list_checkpoints(run)) == ["step_00000008"]
    assert not (run / "summary.json").exists()
    said = caplog.text
    assert "trained 8 steps; evaluating on validation, colours, pairs" in said
    assert ("the trained model is kept; this goes on with its evaluation: the command" in said) == (kind == "error")
    monkeypatch.setattr(trainer, "evaluate", real)
    monkeypatch.setattr(trainer, "log", lambda *_: pytest.fail("a step is trained again"))
    train(dataclasses.replace(config, resume="auto"), "")
    assert (run / "summary.json").is_file() and steps_of(run) == list(range(1, 9))


def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make one gradient infinite in a step whose loss is finite, as an overflow in bf16 does."""
    real = trainer.clip

    def clip(run: Run) -> torch.Tensor | None:
        if run.tracker._bar.n == step - 1:  # the bar counts the steps done
            parameter = next(run.model.parameters())
            assert parameter.grad is not None
            parameter.grad.view(-1)[0] = float("inf")
        return real(run)

    monkeypatch.setattr(trainer, "clip", clip)


@pytest.mark.parametrize(("step", "clipped", "every"), [(4, None, 1), (8, None, 0), (8, 1.0, 0)])
def test_what_is_not_finite_is_never_kept(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, step: int, clipped: float | None, every: int
) -> None:
    config = recipe(
        training={"checkpoint_steps": every, "log_every": 3}, data={"workers": 0}, optim={"clip_norm": clipped}
    )
    count = iter(range(1, 100))
    monkeypatch.setattr("mmrep.training.tracking.Tracker.advance", lambda self: setattr(self._bar, "n", next(count)))
    poison(monkeypatch, step)
    run = Path(config.output_dir)
    kept = ["step_00000002", "step_00000003"] if every else []
    where = rf"the last whole checkpoint is .*{kept[-1]}$" if kept else "there is no checkpoint yet$"
    what = f"the gradient norm is (inf|nan) at step {step}" if clipped else f"are not finite after step {step}"
    with pytest.raises(Diverged, match=f"{what}: lower optim.lr, .*; {where}"):
        train(config, "")
    assert names(list_checkpoints(run)) == kept
    for place in list_checkpoints(run):
        for file in place.glob("*.safetensors"):
            assert all(value.isfinite().all() for value in load_file(file).values())
    assert not (run / "final").exists()


def test_going_back_sets_the_later_steps_aside(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipe(training={"checkpoint_steps": 2, "keep_checkpoints": 3}, data={"workers": 0})
    run = train(config, "")
    assert names(list_checkpoints(run)) == ["step_00000004", "step_00000006", "step_00000008"]
    back = dataclasses.replace(
        config,
        resume=str(run / "checkpoints" / "step_00000004"),
        resume_changes="allow",
        optim=dataclasses.replace(config.optim, lr=2e-3),
    )
    real = trainer.log

    def interrupt(run: Run, step: int, *args: Any) -> None:
        real(run, step, *args)
        if step == 7:
            raise DataError("stop here")

    monkeypatch.setattr(trainer, "log", interrupt)
    with pytest.raises(DataError):
        train(back, "")
    assert names(list_checkpoints(run)) == ["step_00000004", "step_00000006"]
    aside = run / "set_aside" / "001"
    assert names(sorted(aside.iterdir())) == [
        "checkpoints", "final", "metrics.jsonl", "outcomes", "results.json", "summary.json",
    ]  # fmt: skip
    assert names(sorted((aside / "checkpoints").iterdir())) == ["step_00000006", "step_00000008"]
    assert steps_of(aside) == list(range(1, 9))
    monkeypatch.setattr(trainer, "log", real)
    again = dataclasses.replace(back, resume="auto", resume_changes="refuse")
    train(again, "")
    assert steps_of(run) == list(range(1, 9))
    then, now = rates_of(aside), rates_of(run)
    assert now[:4] == then[:4] and now[4:] == pytest.approx([2 * rate for rate in then[4:]])
    assert names(list_checkpoints(run)) == ["step_00000004", "step_00000006", "step_00000008"]


def test_only_own_checkpoints_are_pruned_in_the_order_of_writing(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for name in ("step_00000004_best", "step_00000001", "best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    for step in (8, 2, 4):
        save_checkpoint(tmp_path, step, model, optimizer, {}, keep=2)
    found = sorted(place.name for place in (tmp_path / "checkpoints").iterdir())
    assert found == ["best", "step_00000001", "step_00000002", "step_00000004", "step_00000004_best"]
    assert names(list_checkpoints(tmp_path))[-2:] == ["step_00000002", "step_00000004"]


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"optim": {"lr": 0.5}}, "optim.lr = 0.001, not 0.5"),
    "loss": ({"loss": {"kind": "sigmoid"}}, "loss.kind = infonce, not sigmoid"),
    "head": ({"model": {"pool": "max"}}, "model.pool.name = avg, not max"),
    "precision": ({"training": {"precision": "bf16"}}, "training.precision = fp32, not bf16"),
    "steps": ({"training": {"steps": 12}}, r"training.steps = 8, not 12 \(a cosine schedule over 8 steps has brought"),
}


@pytest.fixture(scope="module")
def finished(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of `avg` that is done; tests leave it as it is."""
    from recipes import make_recipe

    config = make_recipe(colour_set, tmp_path_factory.mktemp("finished") / "run", model={"pool": "avg"})
    train(config, "")
    return config


def like(config: TrainConfig, colour_set: Path, **parts: Any) -> TrainConfig:
    from recipes import make_recipe

    parts["model"] = {"pool": "avg"} | parts.get("model", {})
    return dataclasses.replace(make_recipe(colour_set, Path(config.output_dir), **parts), resume="auto")


@pytest.mark.parametrize("case", OTHERS)
def test_another_config_is_refused_and_named(finished: TrainConfig, colour_set: Path, case: str) -> None:
    parts, named = OTHERS[case]
    with pytest.raises(ConfigError, match=f"was made with {named}.* insist with --resume_changes allow$"):
        train(like(finished, colour_set, **parts), "")
    assert names(list_checkpoints(Path(finished.output_dir))) == ["step_00000004", "step_00000008"]


def test_the_same_head_spelled_otherwise_and_speed_are_taken(
    finished: TrainConfig, colour_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    parts = {"model": {"pool": {"name": "avg"}}, "training": {"checkpoint_steps": 3}, "data": {"workers": 0}}
    train(like(finished, colour_set, **parts), "")
    assert "is finished already" in caplog.text


def test_a_checkpoint_of_another_run_is_checked_too(finished: TrainConfig, colour_set: Path, tmp_path: Path) -> None:
    place = str(Path(finished.output_dir) / "checkpoints" / "step_00000004")
    other = dataclasses.replace(like(finished, colour_set, model={"pool": "max"}), output_dir=str(tmp_path / "new"))
    with pytest.raises(ConfigError, match="model.pool.name = avg, not max"):
        train(dataclasses.replace(other, resume=place), "")
    (tmp_path / "new").mkdir()  # the refused run has left none
    (tmp_path / "new" / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="already holds a run, and .*step_00000004 is a checkpoint of another"):
        train(dataclasses.replace(other, resume=place), "")


def test_more_steps_are_trained_where_the_schedule_has_no_end(recipe: Recipe, colour_set: Path) -> None:
    def asked(steps: int, resume: str = "auto", **parts: Any) -> TrainConfig:
        config = recipe(
            training={"steps": steps, "checkpoint_steps": 0},
            optim={"schedule": "constant"},
            data={"workers": 0},
            **parts,
        )
        return dataclasses.replace(config, resume=resume)

    run = train(asked(4, "none"), "")
    train(asked(8), "")
    assert steps_of(run) == list(range(1, 9))
    assert json.loads((run / "summary.json").read_text())["steps"] == 8
    assert names(sorted((run / "set_aside" / "001").iterdir())) == [
        "final", "metrics.jsonl", "outcomes", "results.json", "summary.json",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="step_00000008 has done 8 steps, more than 6"):
        train(asked(6), "")
    fewer = asked(8, evaluation={"sets": []})
    train(fewer, "")  # evaluates again, on what is asked for now
    assert json.loads((run / "summary.json").read_text())["config"]["evaluation"]["sets"] == []


def test_damaged_files_are_named_and_written_anew(
    finished: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(finished.output_dir, tmp_path / "run"))
    config = dataclasses.replace(finished, output_dir=str(run), resume="auto")
    results = json.loads((run / "results.json").read_text())["results"]
    for name, content in (
        ("summary.json", ""),
        ("summary.json", '{"steps": 8'),
        ("results.json", '{"schema"'),
        ("initial.json", ""),
        ("final/model.safetensors", None),
    ):
        caplog.clear()
        place = run / name
        if content is None:
            with place.open("r+b") as file:
                file.truncate(place.stat().st_size // 2)
        else:
            place.write_text(content)
        (run / "config.yaml").write_text("")
        with (run / "metrics.jsonl").open("a") as file:
            file.write("\0\0\0\n")
        train(config, "")
        assert f"{place}: " in caplog.text and "the end of the run is done again" in caplog.text
        assert "metrics.jsonl: 1 damaged lines are left out" in caplog.text
        assert json.loads((run / "results.json").read_text())["results"] == results
        assert steps_of(run) == list(range(1, 9))
    before = (run / "summary.json").stat().st_mtime_ns
    train(config, "")
    assert (run / "summary.json").stat().st_mtime_ns == before


def test_two_runs_into_one_folder(recipe: Recipe) -> None:
    config = recipe()
    folder = Path(config.output_dir)
    folder.mkdir()
    hold = (
        "import fcntl, time; f = open('.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "f.write('process 7 on a host'); f.flush(); print('held', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"^{folder}: process 7 on a host is writing there; wait for it, stop it, or"):
        train(config, "")
    other.kill()
    other.communicate()
    train(dataclasses.replace(config, training=dataclasses.replace(config.training, steps=2)), "")


@pytest.mark.parametrize("name", ["summary.json", "results.json", "colours.npz", "final", "config.yaml"])
def test_a_full_disk_is_one_line_with_the_file(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from mmrep import files

    real = files.flush

    def flush(path: Path) -> None:
        if name in path.name and path.name.startswith(".writing"):
            raise OSError(28, "No space left on device")
        real(path)

    monkeypatch.setattr(files, "flush", flush)
    config = recipe(training={"steps": 1}, data={"workers": 0}, optim={"warmup": 0})
    with pytest.raises(WriteError, match=f"{name}: can't be written: No space left on device; free some space, then"):
        train(config, "")
    monkeypatch.setattr(files, "flush", real)
    run = train(dataclasses.replace(config, resume="auto"), "")
    assert not [place for place in run.rglob("*") if ".writing" in place.name]


def test_a_full_disk_for_metrics(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trainer.build_run

    def build(*args: Any) -> Run:
        run = real(*args)
        run.tracker._file.close()
        run.tracker._file = Path("/dev/full").open("a")  # noqa: SIM115  # the tracker closes it
        return run

    monkeypatch.setattr(trainer, "build_run", build)
    with pytest.raises(WriteError, match="metrics.jsonl: can't be written: No space left on device; free some space"):
        train(recipe(data={"workers": 0}), "")


def test_moments_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Fused AdamW would read them past their end."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.state[model.weight]["exp_avg"] = torch.zeros(1)
    place = save_checkpoint(tmp_path, 1, model, optimizer, {}, keep=1)
    with pytest.raises(ConfigError, match=r"exp_avg has shape \(1,\), expected \(2, 3\)"):
        load_checkpoint(place, model, torch.optim.AdamW(model.parameters(), fused=True))
