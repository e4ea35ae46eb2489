"""Options of the data in runs: sizes by step, decoded images, caption mixtures, catalogs, subsets, remote shards."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import TINY_MODEL, colour_samples, png, write_tar
from http_server import Server

from mmrep.cli import main
from mmrep.cli.parsing import parse
from mmrep.config.checks import ConfigError
from mmrep.config.data import DataConfig, SourceConfig, ValidationConfig
from mmrep.config.model import ImageConfig
from mmrep.config.tree import TrainConfig
from mmrep.data.loader import Loaded, Phase, Plan, Steps, batches, wrap
from mmrep.data.pairs import keep_decoded
from mmrep.data.sources import Sources
from mmrep.data.subsets import UID
from mmrep.data.tar import DataError
from mmrep.model.image_encoder import ImageEncoder
from mmrep.model.text_encoder import ClipTokenizer
from mmrep.training.build import build_run, plain
from mmrep.training.trainer import train

Recipe = Callable[..., TrainConfig]
NO_SETS: dict[str, Any] = {"sets": []}
PLAN = Plan(seed=5, global_batch=8, steps=15, phases=(Phase(0, (8, 8), (4, 4)),))
"""Two and a half epochs of 48 samples."""


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def make_steps(config: DataConfig, rank: int = 0, processes: int = 1) -> Steps:
    sources = Sources(config)
    return Steps(sources, config, ClipTokenizer(16), PLAN, rank, processes, keep_decoded(sources, config))


def checksum(config: DataConfig, workers: int = 0, processes: int = 1) -> int:
    """Of all batches; several processes one after the other, each with a store of its own."""
    parts = [make_steps(config, rank, processes) for rank in range(processes)]
    return wrap(sum(int(loaded.checksum) for part in parts for loaded in batches(part, 0, workers)))


def loaded_batches(config: TrainConfig) -> list[Loaded]:
    """Those that a run would train on."""
    run = build_run(config)
    run.tracker.close()
    return list(run.batches())


class TestSizes:
    """A schedule of image sizes."""

    @staticmethod
    def image(**fields: Any) -> ImageConfig:
        image = TINY_MODEL["image"]
        return ImageConfig(image["trunk"], args=image["args"] | {"dynamic_img_size": True}, **fields)

    def test_batches_have_the_sizes(self, recipe: Recipe) -> None:
        config = recipe(model={"image": self.image(patch_dropout=0.5)}, data={"sizes": {4: 16, 0: 8}})
        found = []
        for loaded in loaded_batches(config):
            assert loaded.batch.kept is not None
            assert int(loaded.batch.kept.max()) < (loaded.batch.images.shape[3] // 4) ** 2
            found.append((tuple(loaded.batch.images.shape[2:]), loaded.batch.kept.shape[1]))
        assert found == [((8, 8), 2)] * 4 + [((16, 16), 8)] * 4

    def test_training_follows_and_evaluation_does_not(self, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: dict[bool, list[int]] = {True: [], False: []}
        tokens = ImageEncoder.tokens

        def noted(self: ImageEncoder, images: Any, kept: Any = None) -> Any:
            sizes[self.training].append(images.shape[3])
            return tokens(self, images, kept)

        monkeypatch.setattr(ImageEncoder, "tokens", noted)
        config = recipe(
            model={"image": self.image()}, data={"sizes": {0: 8, 4: 16}}, training={"steps": 6, "evaluate_every": 2}
        )
        run = train(config, "")
        assert sizes[True][:6] == [8] * 4 + [16] * 2
        assert set(sizes[True][6:]) <= {16}, "costs are measured on the model's own size"
        assert len(sizes[False]) > 4
        assert set(sizes[False]) == {16}
        losses = [json.loads(line).get("loss", 0.0) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert np.isfinite(losses).all()

    @pytest.mark.parametrize(
        ("sizes", "dynamic", "message"),
        [
            ({0: 8}, True, "data.sizes: the last one has to be the model's, (16, 16), got (8, 8)"),
            ({0: 16, 4: 8}, True, "data.sizes: the last one has to be the model's, (16, 16), got (8, 8)"),
            ({0: 10, 4: 16}, True, "data.sizes: images of (10, 10): expected multiples of the patch size (4, 4)"),
            (
                {0: 8, 4: 16},
                False,
                "data.sizes: images of (8, 8): the trunk takes (16, 16) only; model.image.args: "
                "{dynamic_img_size: true} lets it interpolate its position embedding",
            ),
        ],
    )
    def test_errors_come_before_training(
        self, recipe: Recipe, sizes: dict[int, int], dynamic: bool, message: str
    ) -> None:
        model = {"image": self.image()} if dynamic else {}
        config = recipe(model=model, data={"sizes": sizes})
        with pytest.raises(ConfigError) as error:
            train(config, "")
        assert str(error.value) == message
        assert not Path(config.output_dir).exists()


class TestDecoded:
    """Small sets are decoded once."""

    @pytest.fixture(autouse=True)
    def _empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "cache"))

    @pytest.fixture
    def decodes(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """One entry for each image decoded for training in this process."""
        from mmrep.data import pairs, transforms
        from mmrep.data.decode import decode_image

        calls: list[int] = []

        def counted(*args: Any) -> Any:
            calls.append(1)
            return decode_image(*args)

        for module in (pairs, transforms):
            monkeypatch.setattr(module, "decode_image", counted)
        return calls

    @pytest.fixture
    def shards(self, tmp_path: Path) -> str:
        for i in range(3):
            samples = [
                (key, {"txt": members["txt"], "png": png((i, 90, int(key)), (20 + int(key) % 5, 24))})
                for key, members in colour_samples(16, 16 * i)
            ]
            write_tar(tmp_path / "shards" / f"{i}.tar", samples)
        return f"{tmp_path}/shards"

    @staticmethod
    def data(shards: str, **fields: Any) -> DataConfig:
        return DataConfig([SourceConfig(shards)], **{"min_scale": 0.3, "flip": 0.5, **fields})

    @pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (0, 2)])
    def test_the_same_batches(self, shards: str, workers: int, processes: int) -> None:
        expected = checksum(self.data(shards))
        kept = self.data(shards, decoded_gb=0.1)
        assert checksum(kept, workers, processes) == expected
        assert checksum(kept, workers, processes) == expected, "from the store alone, too"

    def test_nothing_is_decoded_twice(self, shards: str, decodes: list[int]) -> None:
        steps = make_steps(self.data(shards, decoded_gb=0.1))
        counts = [len(decodes) for _ in batches(steps, 0, 0)]
        assert counts == [min(8 * (step + 1), 48) for step in range(PLAN.steps)]
        checksum(self.data(shards, decoded_gb=0.1), processes=2)
        assert len(decodes) == 48, "nor by other ranks and later runs"

    def test_loader_processes_decode_for_all(self, shards: str, decodes: list[int]) -> None:
        checksum(self.data(shards, decoded_gb=0.1), workers=2)
        assert decodes == []
        checksum(self.data(shards, decoded_gb=0.1))
        assert decodes == []

    def test_the_second_run_of_a_study_decodes_nothing(self, recipe: Recipe, decodes: list[int]) -> None:
        parts: dict[str, Any] = {"data": {"decoded_gb": 0.1}, "evaluation": NO_SETS}
        first = train(recipe("avg", model={"pool": "avg"}, **parts), "")
        once = len(decodes)
        assert 0 < once <= 48
        second = train(recipe("ggem", model={"pool": "ggem"}, **parts), "")
        assert len(decodes) == once
        assert summary(first)["batches"] == summary(second)["batches"]

    @pytest.mark.parametrize("pixels", [500, 48 * 20 * 22])
    def test_a_set_that_does_not_fit_is_decoded_as_ever(self, shards: str, decodes: list[int], pixels: int) -> None:
        config = self.data(shards, decoded_gb=3 * pixels / 2**30)
        assert make_steps(config).pairs.decoded is None
        assert checksum(config) == checksum(self.data(shards))
        assert len(decodes) == 2 * 8 * PLAN.steps

    @pytest.mark.parametrize("damaged", ["cut", "no image"])
    def test_a_bad_image_is_met_as_without_the_store(self, shards: str, damaged: str) -> None:
        samples = colour_samples(16)
        whole = samples[5][1]["png"]
        samples[5][1]["png"] = whole[: len(whole) - 30] if damaged == "cut" else b"nothing"
        write_tar(Path(shards) / "1.tar", samples)
        messages = []
        for gb in (0.0, 0.1):
            with pytest.raises(DataError, match=r"1\.tar: sample '000005', member 'png': \S") as error:
                checksum(self.data(shards, decoded_gb=gb))
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        skipping = {"max_bad_fraction": 0.2}
        expected = checksum(self.data(shards, **skipping))
        assert checksum(self.data(shards, decoded_gb=0.1, **skipping)) == expected
        steps = make_steps(self.data(shards, decoded_gb=0.1, **skipping))
        bad = [bad for loaded in batches(steps, 0, 0) for bad in loaded.bad]
        assert len(bad) in (2, 3), "once an epoch"
        assert {each.number for each in bad} == {16 + 5}


class TestCaptionMixtures:
    """Captions of several kinds, from YAML and the command line."""

    @pytest.fixture
    def file(self, recipe: Recipe, tmp_path: Path) -> str:
        place = tmp_path / "config.yaml"
        content = plain(recipe(evaluation=NO_SETS).to_dict())
        content["data"]["train"][0]["caption"] = {"txt": 0.3, "json:caption": 0.7}
        place.write_text(yaml.safe_dump(content))
        return str(place)

    def test_from_yaml_to_a_run(self, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
        texts: list[str] = []
        batch = ClipTokenizer.batch

        def noted(self: ClipTokenizer, new: list[str]) -> Any:
            texts.extend(new)
            return batch(self, new)

        monkeypatch.setattr(ClipTokenizer, "batch", noted)
        config = parse(TrainConfig, "train", ["--config", file, "--training.steps", "50"])
        assert config.data.train[0].caption == {"txt": 0.3, "json:caption": 0.7}
        assert len(loaded_batches(config)) == 50
        kinds = Counter("txt" if text.startswith(("a ", "picture ")) else "json" for text in texts)
        assert sum(kinds.values()) == 400
        assert abs(kinds["txt"] - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5

    @pytest.mark.parametrize("style", ["--data.train", "--data.train="])
    def test_from_the_command_line(self, file: str, colour_set: Path, style: str) -> None:
        sources = (
            f'[{{shards: {colour_set}/train, caption: {{cls: 1, "json:caption": 3}}}}, {{shards: [x/0.tar, y.npz]}}]'
        )
        option = [style + sources] if style.endswith("=") else [style, sources]
        config = parse(TrainConfig, "train", ["--config", file, *option])
        first, second = config.data.train
        assert first == SourceConfig(f"{colour_set}/train", caption={"cls": 1, "json:caption": 3})
        assert second == SourceConfig(["x/0.tar", "y.npz"])
        assert first.caption_shares() == {"cls": 0.25, "json:caption": 0.75}

    def test_sizes_keep_integers(self, file: str, tmp_path: Path) -> None:
        for option in (["--data.sizes", "{0: 8, 4: 16}"], ["--data.sizes={0: 8, 4: 16}"]):
            assert parse(TrainConfig, "train", ["--config", file, *option]).data.sizes == {0: 8, 4: 16}
        other = tmp_path / "sizes.yaml"
        other.write_text(Path(file).read_text().replace("sizes: null", "sizes: {0: 8, 4: 16}"))
        config = parse(TrainConfig, "train", ["--config", str(other)])
        assert config.data.sizes == {0: 8, 4: 16}
        again = tmp_path / "again.yaml"
        again.write_text(yaml.safe_dump(plain(config.to_dict())))
        assert parse(TrainConfig, "train", ["--config", str(again)]) == config

    @pytest.mark.parametrize(
        ("option", "value", "named"),
        [
            ("--data.sizes", "{a: 8}", "data.sizes"),
            ("--data.sizes", "{0: small}", "data.sizes"),
            ("--data.sizes", "[8, 16]", "data.sizes"),
            ("--data.sizes", "{4: 16}", "data.sizes: expected the size from step 0 on"),
            ("--data.train", "[{shards: a, caption: {txt: much}}]", "data.train"),
            ("--data.train", "[{shards: a, caption: [txt]}]", "data.train"),
            ("--data.train", "[{shards: a, caption: {txt: -1}}]", "data.train caption txt: expected a value > 0"),
            ("--data.train", "[{shards: a, caption: {alt: 1}}]", "data.train caption: unknown value 'alt'"),
            ("--data.train", "[{shards: a, captions: txt}]", "captions"),
        ],
    )
    @pytest.mark.usefixtures("unchecked")
    def test_wrong_types_are_one_line(self, file: str, option: str, value: str, named: str) -> None:
        with pytest.raises(ConfigError) as error:
            parse(TrainConfig, "train", ["--config", file, option, value])
        assert "\n" not in str(error.value)
        assert named in str(error.value)
        assert len(str(error.value)) < 400


def test_a_catalog_as_source(recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [str(write_tar(tmp_path / "set" / f"{i}.tar", colour_samples(16, 16 * i))) for i in range(3)]
    catalog = tmp_path / "set" / "all.npz"
    assert main(["data", "index", *shards, "--catalog", str(catalog)]) == 0
    assert f"written: {catalog}" in capsys.readouterr().out
    runs = [
        train(recipe(name, source={"shards": source}, evaluation=NO_SETS), "")
        for name, source in (("tars", shards), ("catalog", str(catalog)))
    ]
    assert summary(runs[0])["batches"] == summary(runs[1])["batches"]
    assert summary(runs[0])["data"] == summary(runs[1])["data"]


def test_only_a_subset_is_trained_on(recipe: Recipe, tmp_path: Path) -> None:
    for shard in range(3):
        samples = [
            (key, members | {"json": f'{{"uid": "{int(key) * 7919:032x}"}}'.encode()})
            for key, members in colour_samples(16, 16 * shard)
        ]
        write_tar(tmp_path / "pool" / f"{shard}.tar", samples)
    chosen = set(range(0, 48, 3))
    np.save(tmp_path / "subset.npy", np.array([(0, number * 7919) for number in [*chosen, 10**6]], dtype=UID))
    source = {"shards": f"{tmp_path}/pool", "subset": f"{tmp_path}/subset.npy"}
    config = recipe(source=source, evaluation=NO_SETS)
    sources = Sources(config.data)
    drawn = [number for loaded in loaded_batches(config) for number in loaded.batch.ids.tolist()]
    samples = [sources.sample(number) for number in drawn]
    used = Counter(int(sample.shard.keys[sample.row]) for sample in samples)
    held = {int(sample.shard.keys[sample.row]) for sample in sources.held_out(100)}
    assert set(used) == chosen - held
    assert max(used.values()) - min(used.values()) <= 1
    assert len(sources) == len(chosen - held)


class TestRemote:
    """The same batches from a web server, through the cache."""

    @pytest.fixture(autouse=True)
    def _empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MMREP_CACHE", str(tmp_path / "mmrep"))

    @pytest.fixture
    def server(self, colour_set: Path) -> Iterator[Server]:
        """Has the set's shards, class names and templates."""
        with Server() as running:
            files = [*(colour_set / "train").glob("*.tar"), *colour_set.glob("*.txt")]
            running.files = {f"/{path.relative_to(colour_set)}": path.read_bytes() for path in files}
            yield running

    @pytest.fixture
    def catalog(self, colour_set: Path, server: Server, tmp_path: Path) -> str:
        """The address of a catalog of them."""
        folder = shutil.copytree(colour_set / "train", tmp_path / "catalogued")
        assert main(["data", "index", str(folder), "--catalog", str(folder / "all.npz")]) == 0
        server.files |= {f"/train/{path.name}": path.read_bytes() for path in folder.glob("*.npz")}
        return f"{server.url}/train/all.npz"

    @pytest.fixture
    def data(self, tmp_path: Path) -> Callable[..., DataConfig]:
        def make(shards: str, caption: str = "txt", **fields: Any) -> DataConfig:
            place = {"cache_dir": str(tmp_path / "cache"), "min_scale": 0.3, "flip": 0.5}
            return DataConfig([SourceConfig(shards, caption=caption)], **place | fields)

        return make

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_run_is_that_of_local_files(
        self, recipe: Recipe, server: Server, colour_set: Path, tmp_path: Path, workers: int
    ) -> None:
        server.faults = {
            "/train/0.tar": {"status": 503, "times": 1},
            "/train/1.tar": {"truncate": 20_000, "times": 2},
        }
        cache = {"cache_dir": str(tmp_path / "cache"), "workers": workers}
        source = {"shards": f"{server.url}/train/{{0..2}}.tar"}
        away = train(recipe("away", source=source, data=cache, evaluation=NO_SETS), "")
        here = train(recipe("here", evaluation=NO_SETS), "")
        assert summary(away)["batches"] == summary(here)["batches"]
        assert summary(away)["data"] == summary(here)["data"]
        assert sorted(path.name[33:] for path in (tmp_path / "cache").glob("*-*.tar")) == ["0.tar", "1.tar", "2.tar"]
        assert (
            Sources(DataConfig([SourceConfig(**source)])).digest()
            == Sources(DataConfig([SourceConfig(f"{colour_set}/train")])).digest()
        )

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_cache_smaller_than_the_set(
        self, recipe: Recipe, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int
    ) -> None:
        shards = [write_tar(tmp_path / "many" / f"{i}.tar", colour_samples(6, 6 * i)) for i in range(8)]
        server.files |= {f"/many/{path.name}": path.read_bytes() for path in shards}
        limit = int(4.5 * shards[0].stat().st_size)
        small = {"cache_gb": limit / 2**30, "cache_dir": str(tmp_path / "cache"), "workers": workers}
        source = {"shards": f"{server.url}/many/{{0..7}}.tar"}
        with caplog.at_level(logging.WARNING, "mmrep"):
            away = train(recipe("away", source=source, data=small, evaluation=NO_SETS), "")
        here = train(recipe("here", source={"shards": f"{tmp_path}/many"}, evaluation=NO_SETS), "")
        assert summary(away)["batches"] == summary(here)["batches"]
        assert [line for line in caplog.messages if "each will be downloaded many times; raise it" in line]
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*-*.tar")) <= limit
        again = sum(server.requests[f"/many/{path.name}"] for path in shards)
        assert again > 5 * len(shards), "evicted, and downloaded again"

    def test_a_catalog_and_class_names_over_http(
        self, data: Callable[..., DataConfig], server: Server, catalog: str, colour_set: Path
    ) -> None:
        expected = checksum(data(f"{colour_set}/train", "cls"))
        assert checksum(data(catalog, "cls")) == expected
        assert checksum(data(f"{server.url}/train/{{0..2}}.tar", "cls"), workers=2) == expected
        del server.files["/classnames.txt"]
        with pytest.raises(ConfigError, match=r"data\.train\[0\]\.classnames: .* no classnames\.txt beside http://"):
            checksum(data(catalog, "cls"))

    def test_a_catalog_opens_no_shard_at_the_start(
        self, data: Callable[..., DataConfig], server: Server, catalog: str
    ) -> None:
        server.requests.clear()
        Sources(data(catalog))
        assert dict(server.requests) == {"/train/all.npz": 1}

    @pytest.mark.parametrize("allowed", [0.0, 0.4])
    def test_a_shard_missing_from_a_list_is_one_line(
        self, recipe: Recipe, server: Server, tmp_path: Path, allowed: float
    ) -> None:
        del server.files["/train/1.tar"]
        config = recipe(
            source={"shards": f"{server.url}/train/{{0..2}}.tar"},
            data={"max_bad_fraction": allowed, "cache_dir": str(tmp_path / "cache")},
        )
        with pytest.raises(DataError) as error:
            train(config, "")
        assert str(error.value) == f"{server.url}/train/1.tar: no such file"

    @pytest.mark.parametrize("sidecar", [True, False])
    def test_a_shard_missing_of_a_catalog(
        self,
        recipe: Recipe,
        server: Server,
        catalog: str,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        sidecar: bool,
    ) -> None:
        del server.files["/train/1.tar"]
        if not sidecar:
            del server.files["/train/1.tar.index.npz"]
        data = {"cache_dir": str(tmp_path / "cache"), "validation": ValidationConfig(0)}

        def run(name: str, **fields: Any) -> Path:
            return train(recipe(name, source={"shards": catalog}, data=data | fields, evaluation=NO_SETS), "")

        with pytest.raises(DataError) as error:
            run("strict")
        assert str(error.value) == f"{server.url}/train/1.tar: no such file"
        skipping = run("skipping", max_bad_fraction=0.5)
        found = summary(skipping)["bad_samples"]
        lines = [json.loads(line) for line in (skipping / "bad_samples.rank0.jsonl").read_text().splitlines()]
        assert len(lines) == found >= 16
        assert {line["number"] // 16 for line in lines} == {1}
        assert {line["reason"] for line in lines} == {f"{server.url}/train/1.tar: no such file"}
        assert f"another sample takes its place: {server.url}/train/1.tar: no such file" in caplog.text

    @pytest.mark.parametrize("workers", [0, 2])
    def test_staged_shards(
        self, data: Callable[..., DataConfig], colour_set: Path, tmp_path: Path, workers: int
    ) -> None:
        expected = checksum(data(f"{colour_set}/train"))
        assert not (tmp_path / "cache").exists()
        assert checksum(data(f"{colour_set}/train", stage=True), workers) == expected
        for path in (colour_set / "train").iterdir():
            (copy,) = (tmp_path / "cache").glob(f"*-{path.name}")
            assert copy.read_bytes() == path.read_bytes()
