"""Screening: heads on one frozen trunk, side by side."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recipes import make_recipe

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import PoolConfig
from mmrep.config.study import DiagnosticsConfig, StudyConfig, TuneConfig
from mmrep.config.tree import ScreenConfig, TrainConfig
from mmrep.model.load import load
from mmrep.model.shared import OWN, apart, with_heads
from mmrep.study import screen as screening
from mmrep.study.collect import collect, read_study
from mmrep.study.report import terminal
from mmrep.study.runner import compare_on_one_trunk

Recipe = Callable[..., TrainConfig]
COMMAND = "mmrep screen --config x.yaml"
POOLS = ["avg", "ggem", {"name": "mmcap", "args": {"stages": 1}}, "cap"]


def study(recipe: Recipe, name: str = "screen", pools: Any = ("avg", "ggem"), **fields: Any) -> ScreenConfig:
    own = {key: fields.pop(key) for key in ("trunk", "trunk_steps") if key in fields}
    config = recipe(name, training={"steps": 3, "log_every": 1}, **fields.pop("parts", {}))
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(TrainConfig)}
    wanted = {"pools": list(pools), "seeds": [0, 1], "diagnostics": DiagnosticsConfig(0)} | fields
    return ScreenConfig(**shared, **own, study=StudyConfig(**wanted))


@pytest.fixture(scope="module")
def screened(colour_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ScreenConfig, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("screen")
    config = study(lambda name, **parts: make_recipe(colour_set, folder / name, **parts), pools=POOLS)
    return config, compare_on_one_trunk(config, COMMAND)


def test_results_are_those_of_a_study(screened: tuple[ScreenConfig, dict[str, Any]]) -> None:
    config, results = screened
    assert (results["kind"], results["paired"], results["interim"]) == ("screen", True, False)
    assert [(run["pool"], run["seed"]) for run in results["runs"]][:2] == [("avg", 0), ("ggem", 0)]
    assert len(results["runs"]) == 8
    assert results["batches"]["0"] != results["batches"]["1"]
    folder = Path(config.output_dir)
    assert [line["step"] for line in results["curves"]["ggem-0"]][:3] == [1, 2, 3]
    read = read_study(folder)
    assert isinstance(read, ScreenConfig)
    assert collect(read, COMMAND) == results
    assert {place.parent.name for place in folder.glob("runs/*/final")} == {
        f"{run['pool']}-0" for run in results["runs"]
    }
    assert "ggem" in terminal(results)


def test_a_kept_model_gives_the_results_that_were_measured(screened: tuple[ScreenConfig, dict[str, Any]]) -> None:
    from mmrep.evaluation.sets import open_set
    from mmrep.evaluation.suite import evaluate

    config, results = screened
    tests = [open_set(each) for each in config.evaluation.sets]
    for run in results["runs"][:4]:
        model = load(Path(config.output_dir) / f"runs/{run['pool']}-0")
        again = evaluate({"x": model}, tests, dataclasses.replace(config.evaluation, cache=False))
        for result in again:
            for name, value in result.evaluation.metrics.items():
                assert run["metrics"][f"{result.evalset.name}/{name}"] == value


def test_the_towers_stay_as_they_were(screened: tuple[ScreenConfig, dict[str, Any]]) -> None:
    config, _ = screened
    folder = Path(config.output_dir)
    trunk = load(folder / "trunk").state_dict()
    for pool in ("avg", "ggem", "cap"):
        trained = load(folder / f"runs/{pool}-0").state_dict()
        moved = {name for name, value in trained.items() if name not in trunk or not torch.equal(value, trunk[name])}
        assert {name for name in moved if not name.startswith((*OWN, "text.tower.text_projection"))} == set()
        assert {"image.projection.weight", "text.tower.text_projection", "logit_scale"} <= moved


def test_a_finished_seed_is_left_out_and_the_trunk_is_not_trained_again(
    screened: tuple[ScreenConfig, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, results = screened
    monkeypatch.setattr(screening, "_train", None)
    assert compare_on_one_trunk(config, COMMAND)["runs"] == results["runs"]


def test_a_head_trains_the_same_alone_and_side_by_side(recipe: Recipe) -> None:
    trunk = study(recipe, "trunk", pools=["avg"], seeds=[0])
    compare_on_one_trunk(trunk, COMMAND)
    source = f"{trunk.output_dir}/trunk"
    both = compare_on_one_trunk(study(recipe, "both", pools=POOLS, trunk=source, seeds=[0]), COMMAND)
    for pool in ("ggem", POOLS[2]):
        alone = compare_on_one_trunk(study(recipe, "alone", pools=[pool], trunk=source, seeds=[0]), COMMAND)
        label = alone["runs"][0]["pool"]
        curves = [[line["loss"] for line in each["curves"][f"{label}-0"] if "loss" in line] for each in (both, alone)]
        assert curves[0] == curves[1]
        Path(f"{Path(trunk.output_dir).parent}/alone").rename(f"{Path(trunk.output_dir).parent}/alone_{label}")


def test_shared_towers_compute_what_a_model_of_its_own_does(recipe: Recipe) -> None:
    from mmrep.model.dual_encoder import DualEncoder

    config = recipe("x")
    base = DualEncoder(config.model, 0)

    def build(pool: PoolConfig, seed: int) -> DualEncoder:
        own = dataclasses.replace(config.model, pool={"name": pool.name, "args": pool.args})
        return DualEncoder(own, seed, head_seed=seed)

    pools = [PoolConfig.parse(pool) for pool in POOLS]
    models = with_heads(base, pools, [1, 2, 3, 4], build)
    images = torch.randint(0, 256, (2, 3, *base.image.size), dtype=torch.uint8)
    tokens = base.tokenizer(["a red square", "a dot"])
    for model in models:
        model.eval()
        shared = model.encode_image(images), model.encode_text(tokens)
        with apart(model):
            own = model.encode_image(images), model.encode_text(tokens)
        assert all(torch.equal(a, b) for a, b in zip(shared, own, strict=True))
        assert model.image.trunk.pos_embed is base.image.trunk.pos_embed
    other = torch.randint(0, 256, images.shape, dtype=torch.uint8)
    assert not torch.equal(models[0].encode_image(images), models[0].encode_image(other))


def test_a_head_that_diverges_is_reported_and_the_others_go_on(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = screening.total_loss

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        broken.calls += 1  # type: ignore[attr-defined]
        return real(*args, **kwargs) * (float("nan") if broken.calls == 3 else 1)  # type: ignore[attr-defined]

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(screening, "total_loss", broken)
    config = study(recipe, seeds=[0])
    results = compare_on_one_trunk(config, COMMAND)
    assert [run["pool"] for run in results["runs"]] == ["ggem"]
    assert [(run["pool"], run["message"]) for run in results["failed"]] == [("avg", "the loss is nan at step 2")]


def test_what_screening_does_not_do_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="study.tune: screening tunes nothing"):
        study(recipe, tune=TuneConfig({"optim.lr": [1e-3]}))
    with pytest.raises(ConfigError, match=r"study.axes optim.lr: screening has one recipe"):
        study(recipe, axes={"optim.lr": [1e-3]})


def test_the_metrics_file_has_the_evaluation_on_held_out_images(screened: tuple[ScreenConfig, dict[str, Any]]) -> None:
    config, _ = screened
    lines = (Path(config.output_dir) / "runs/avg-1/metrics.jsonl").read_text().splitlines()
    assert "validation/" in next(iter(json.loads(lines[-1])["evaluation"]))
