"""Kills and resumes with other numbers of processes and workers change no batch; other data is refused by name."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import colour_samples, write_tar
from recipes import make_recipe

from mmrep.cli import main
from mmrep.config.checks import ConfigError
from mmrep.config.data import SourceConfig, ValidationConfig
from mmrep.config.model import ImageConfig
from mmrep.config.tree import TrainConfig
from mmrep.data.subsets import UID
from mmrep.model.text_encoder import ClipTokenizer
from mmrep.training.checkpoint import list_checkpoints
from mmrep.training.trainer import train

Recipe = Callable[..., TrainConfig]
STEPS, EVERY = 30, 6


def _work(config: TrainConfig, rank: int, processes: int, port: int, pause: int) -> None:
    """One process of a run; it stops for ever once the batch of step `pause` has come."""
    os.setsid()  # loader processes are killed with it
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    os.environ["ACCELERATE_USE_CPU"] = "true"
    import torch

    from mmrep.data.ledger import Ledger

    torch.set_num_threads(1)
    write = Ledger.write

    def write_and_wait(self: Ledger, step: int, used: Any) -> None:
        write(self, step, used)
        if step == pause:
            (Path(config.output_dir) / f"paused_{rank}").touch()
            while True:
                signal.pause()

    Ledger.write = write_and_wait  # type: ignore[method-assign]
    train(config, "")


def run(config: TrainConfig, processes: int, pause: int = -1) -> None:
    """Trains with so many processes; with `pause`, all are killed in the step of that number.

    They come from a server that has imported everything, since imports take longer than these runs; `torchrun` sets
    the same variables (see test_processes.py), but its processes can't be killed as a group.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmrep.training.trainer"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = [context.Process(target=_work, args=(config, rank, processes, port, pause)) for rank in range(processes)]
    for process in started:
        process.start()
    marks = [Path(config.output_dir) / f"paused_{rank}" for rank in range(processes)]
    deadline = time.monotonic() + 240
    while pause >= 0 and not all(mark.exists() for mark in marks):
        assert all(process.is_alive() for process in started), "ended before it was killed"
        assert time.monotonic() < deadline, "the run is stuck"
        time.sleep(0.02)
    for process, mark in zip(started, marks, strict=True):
        if pause >= 0:
            os.killpg(process.pid, signal.SIGKILL)
            mark.unlink()
        process.join(240)
        assert process.exitcode == (-signal.SIGKILL if pause >= 0 else 0)


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def ledger(run: Path) -> np.ndarray:
    """(slot, sample scheduled, sample used) of every pair, each once, by slot."""
    parts = [np.fromfile(file, dtype="<i8").reshape(-1, 3) for file in sorted((run / "ledger").glob("*.bin"))]
    return np.unique(np.concatenate(parts), axis=0)


@pytest.mark.long
def test_kills_and_other_world_sizes_change_nothing(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = recipe(
        "whole",
        data={"ledger": True, "workers": 0, "shuffle_block": 20, "flip": 0.5},
        training={"steps": STEPS, "checkpoint_steps": EVERY, "global_batch": 8, "log_every": 1},
        evaluation={"sets": []},
    )
    broken = dataclasses.replace(whole, output_dir=str(tmp_path / "broken"))
    folder = Path(broken.output_dir)
    data = dataclasses.replace(broken.data, workers=2, prefetch=3)
    run(dataclasses.replace(broken, data=data), processes=2, pause=EVERY + 3)
    assert [place.name for place in list_checkpoints(folder)] == [f"step_{EVERY:08d}"]
    resumed = dataclasses.replace(broken, resume="auto")
    run(resumed, processes=1, pause=3 * EVERY + 2)
    run(resumed, processes=4)
    run(whole, processes=1)

    assert summary(folder)["batches"] == summary(Path(whole.output_dir))["batches"]
    assert np.array_equal(ledger(folder), ledger(Path(whole.output_dir)))
    assert len(list((folder / "ledger").glob("rank_*.bin"))) == 4
    expected, found = losses(Path(whole.output_dir)), losses(folder)
    assert sorted(found) == list(range(1, STEPS + 1))
    # Sums of gradients depend on the number of processes in the last bits.
    assert found == pytest.approx(expected, rel=1e-4)
    capsys.readouterr()
    assert main(["data", "ledger", str(folder)]) == 0
    out = capsys.readouterr().out
    # Killed in the steps 9 and 20 (from 0), whose batches had come, after checkpoints at 6 and 18.
    assert f"{8 * STEPS} pairs, {8 * (4 + 3)} repeated after a resume, 0 replaced" in out
    assert "each sample exactly once in every epoch" in out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, class names, a subset and a checkpoint trained on them."""
    folder = tmp_path_factory.mktemp("trained")
    for i in range(3):
        write_tar(folder / "shards" / f"{i}.tar", with_uids(16, 16 * i))
    save_subset(folder / "all.npy", range(48))
    for name, lines in (("classnames", "red\ngreen\nblue\nyellow\n"), ("templates", "a {c} one\nthe {c} thing\n")):
        (folder / f"{name}.txt").write_text(lines)
    (train(tiny_run(folder), "") / "summary.json").unlink()
    return folder


def with_uids(count: int, start: int) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (key, {**members, "json": f'{{"caption": "number {key}", "uid": "{int(key):032x}"}}'.encode()})
        for key, members in colour_samples(count, start)
    ]


def save_subset(place: Path, numbers: Any) -> None:
    np.save(place, np.array([(0, number) for number in numbers], dtype=UID))


def tiny_run(folder: Path, **parts: Any) -> TrainConfig:
    source = {
        "shards": f"{folder}/shards",
        "caption": {"txt": 0.5, "json:caption": 0.25, "cls": 0.25},
        "classnames": f"{folder}/classnames.txt",
        "templates": f"{folder}/templates.txt",
        "subset": f"{folder}/all.npy",
    }
    parts["source"] = source | parts.get("source", {})
    parts["training"] = {"steps": 2, "checkpoint_steps": 2} | parts.get("training", {})
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    image = ImageConfig(trunk="vit_base_patch16_clip_224", args=args, **parts.pop("image", {}))
    parts["model"] = {"pool": "avg", "image": image}
    return make_recipe(folder, folder / "run", evaluation={"sets": []}, **parts)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change; the run of the original is resumed there."""
    return shutil.copytree(trained, tmp_path / "copy")


def refused(config: TrainConfig) -> str:
    """What a user reads whose run is not resumed: one line."""
    with pytest.raises(ConfigError) as caught:
        train(dataclasses.replace(config, resume="auto"), "")
    message = str(caught.value)
    assert "\n" not in message
    start = f"checkpoint {config.output_dir}/checkpoints/step_00000002 was made with other data: "
    end = "; restore it, or start a new run in another --output_dir"
    assert message.startswith(start)
    assert message.endswith(end)
    return message.removeprefix(start).removesuffix(end)


def test_the_same_data_elsewhere_is_taken(copy: Path) -> None:
    assert train(dataclasses.replace(tiny_run(copy, training={"steps": 3}), resume="auto"), "").is_dir()


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "min_scale": ({"data": {"min_scale": 0.7}}, "transform.min_scale was 0.5, is 0.7"),
    "flip": ({"data": {"flip": 0.5}}, "transform.flip was 0.0, is 0.5"),
    "crop": ({"data": {"crop": "resize"}}, "transform.crop was random_resized, is resize"),
    "dct_scaling": ({"data": {"dct_scaling": True}}, "transform.dct_scaling was False, is True"),
    "sizes": (
        {"data": {"sizes": {0: 8, 1: 16}}},
        "transform.phases was [[0, 16, 16, 16, 16]], is [[0, 8, 8, 4, 4], [1, 16, 16, 16, 16]]",
    ),
    "patch dropout": (
        {"image": {"patch_dropout": 0.5}},
        "transform.phases was [[0, 16, 16, 16, 16]], is [[0, 16, 16, 16, 8]]",
    ),
    "shuffle_block": ({"data": {"shuffle_block": 20}}, "shuffle_block was 1048576, is 20"),
    "seed": ({"seed": 1}, "seed was 0, is 1"),
    "global_batch": ({"training": {"global_batch": 4}}, "global_batch was 8, is 4"),
    "weight": ({"source": {"weight": 2.0}}, "weights was [1.0], is [2.0]"),
    "caption weights": (
        {"source": {"caption": {"txt": 0.25, "json:caption": 0.25, "cls": 0.5}}},
        "captions was [{'txt': 0.5, 'json:caption': 0.25, 'cls': 0.25}], is "
        "[{'txt': 0.25, 'json:caption': 0.25, 'cls': 0.5}]",
    ),
    "caption": ({"source": {"caption": "txt"}}, "is [{'txt': 1.0}]"),
    "validation": ({"data": {"validation": ValidationConfig(0.2)}}, "validation_fraction was 0.1, is 0.2"),
    "no subset": ({"source": {"subset": None}}, "subsets was ['{hex}'], is [None]"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_options_are_refused_and_named(trained: Path, case: str) -> None:
    parts, expected = OTHERS[case]
    pattern = re.escape(expected).replace(re.escape("{hex}"), "[0-9a-f]{32}")
    assert re.search(f"{pattern}$", refused(tiny_run(trained, **parts)))


def test_another_subset_is_refused(copy: Path) -> None:
    save_subset(copy / "all.npy", range(40))
    assert re.fullmatch(r"subsets was \['[0-9a-f]{32}'\], is \['[0-9a-f]{32}'\]", refused(tiny_run(copy)))


@pytest.mark.parametrize("name", ["classnames", "templates"])
def test_other_class_names_and_templates_are_refused(copy: Path, name: str) -> None:
    text = (copy / f"{name}.txt").read_text()
    (copy / f"{name}.txt").write_text(text.replace("red", "crimson").replace("the", "this"))
    assert re.fullmatch(r"class_texts was \[\d+\], is \[\d+\]", refused(tiny_run(copy)))


def without_subset(folder: Path) -> TrainConfig:
    """A run whose shards are the only thing that can change; its checkpoint is made here."""
    shutil.rmtree(folder / "run")
    config = tiny_run(folder, source={"subset": None}, data={"validation": ValidationConfig(0)})
    (train(config, "") / "summary.json").unlink()
    return config


def test_changed_shards_are_refused_and_named(copy: Path) -> None:
    config = without_subset(copy)
    shards = copy / "shards"
    write_tar(shards / "1.tar", with_uids(15, 16))
    assert refused(config) == "samples was 48, is 47 (0/1.tar had 16 samples, has 15)"
    write_tar(shards / "1.tar", with_uids(16, 16))
    write_tar(shards / "3.tar", with_uids(16, 48))
    assert refused(config) == "shards was 3, is 4 (0/3.tar is new)"
    (shards / "3.tar").unlink()
    (shards / "2.tar").rename(shards / "02.tar")
    assert re.fullmatch(r"sources was \w+, is \w+ \(0/02\.tar is new; 0/2\.tar is gone\)", refused(config))
    (shards / "02.tar").rename(shards / "2.tar")
    write_tar(shards / "0.tar", [(f"x{key}", members) for key, members in with_uids(16, 0)])
    assert re.fullmatch(r"sources was \w+, is \w+ \(0/0\.tar has other members\)", refused(config))
    write_tar(shards / "0.tar", with_uids(16, 0))
    source = dataclasses.replace(config.data.train[0], shards=f"{shards}/{{0,2,1}}.tar")
    turned = dataclasses.replace(config, data=dataclasses.replace(config.data, train=[source]))
    assert re.fullmatch(r"sources was \w+, is \w+ \(the order of the shards has changed\)", refused(turned))


def test_other_weights_of_two_sources_are_refused(copy: Path) -> None:
    def weighted(first: float) -> TrainConfig:
        sources = [SourceConfig(f"{copy}/shards/{name}.tar", weight=w) for name, w in (("0", first), ("{1,2}", 1.0))]
        return tiny_run(copy, data={"train": sources})

    shutil.rmtree(copy / "run")
    (train(weighted(1.0), "") / "summary.json").unlink()
    assert refused(weighted(3.0)) == "weights was [1.0, 1.0], is [3.0, 1.0]"


def test_another_tokenizer_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipTokenizer, "digest", lambda self: "another")
    assert re.fullmatch(r"tokenizer was [0-9a-f]{32}, is another", refused(tiny_run(trained)))
