"""The options that verbs for models and sets share, and what becomes of them."""

import dataclasses
import os
import sys
import tempfile
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mmrep import __version__
from mmrep.cli.parsing import read_suite
from mmrep.config.checks import ConfigError, require
from mmrep.config.evaluation import EvaluationConfig, SetConfig
from mmrep.config.suites import merge_suites

if TYPE_CHECKING:
    from mmrep.evaluation.embedding.cache import EmbeddingCache
    from mmrep.evaluation.sets import EvalSet
    from mmrep.model.dual_encoder import DualEncoder

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OneModel:
    """Options of verbs for one model.

    Attributes:
        model: The model: a run, its final/, an open_clip folder, or hf-hub:user/name.
        allow_pickle: Read .pt weights of open_clip folders, with weights_only=True.
        plugins: Modules that register pooling heads of your own.
    """

    model: str
    allow_pickle: bool = False
    plugins: list[str] = field(default_factory=list)

    def load(self) -> "DualEncoder":
        """Load the model."""
        from mmrep.model.load import load

        return load(self.model, allow_pickle=self.allow_pickle)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Options of verbs that read images.

    Attributes:
        batch_size: Images in one forward pass.
        workers: Processes that read and decode images.
        device: Where the model runs. By default the GPU, if there is one; with several processes cpu or cuda.
    """

    batch_size: int | None = None
    workers: int | None = None
    device: str | None = None

    def applied(self, config: EvaluationConfig, **fields: Any) -> EvaluationConfig:
        """Return a config with the options that were given."""
        given = {key: getattr(self, key) for key in ("batch_size", "workers") if getattr(self, key) is not None}
        return dataclasses.replace(config, **given, **fields)


@dataclass(frozen=True, kw_only=True)
class ModelsAndSets(Speed):
    """Options of verbs for several models on several sets.

    Attributes:
        model: The models: runs, their final/, open_clip folders, or hf-hub:user/name.
        suite: YAML files with sets, batch size and options of tasks.
        data: Folders or addresses of sets.
        split: Split of the sets in --data.
        data_format: Format of the sets in --data. Sets with annotation files are listed in a suite.
        allow_pickle: Read .pt weights of open_clip folders, with weights_only=True.
        precision: Precision of the models. By default the one that each was trained with.
        cache: Read and keep embeddings in $MMREP_CACHE/embeddings (at most $MMREP_EMBEDDINGS_GB, default 20).
        plugins: Modules that register pooling heads of your own.
    """

    model: list[str]
    suite: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    split: str = "test"
    data_format: Literal["webdataset", "folder"] = "webdataset"
    allow_pickle: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    cache: bool = True
    plugins: list[str] = field(default_factory=list)

    def read_suites(self, tasks: list[str], joined: bool = False) -> list[EvaluationConfig]:
        """Return all of --suite and --data, as one config for each different set of options.

        Args:
            tasks: tasks of the sets in --data.
            joined: take the first suite's options for all sets, where options of tasks do not matter: one config.

        Raises:
            ConfigError: a file that is no suite; see `merge_suites` and `check_sets`.
        """
        suites = [(file, read_suite(file)) for file in self.suite]
        if self.data:
            suites.append(("--data", EvaluationConfig(sets=self._given_sets(tasks))))
        if joined:
            suites = [(file, dataclasses.replace(suites[0][1], sets=suite.sets)) for file, suite in suites]
        merged = merge_suites([(file, self.applied(suite, cache=self.cache)) for file, suite in suites])
        check_sets([each for config in merged for each in config.sets])
        return merged

    def _given_sets(self, tasks: list[str]) -> list[SetConfig]:
        for path in self.data:
            place = Path(path).expanduser()
            require(not place.is_file(), f"--data {path}: is a file: list it in a suite (--suite) with its `format`")
            packed = self.data_format != "webdataset" or not place.is_dir() or any(place.glob("*/nshards.txt"))
            require(
                packed or (place / self.split / "nshards.txt").is_file(),
                f"--data {path}: no {self.split}/nshards.txt, so not in CLIP_benchmark's layout; a folder of class "
                "folders? give --data_format folder, with --split . where they lie in the folder itself",
            )
        return [SetConfig(path, task=tasks, split=self.split, format=self.data_format) for path in self.data]

    def names(self) -> dict[str, str]:
        """Return the models by short names for results: the folder's name, or the run's for a final/.

        Raises:
            ConfigError: a model is given twice, or two names are the same as folders.
        """
        from mmrep.evaluation.outcome_names import check_model_names

        names: dict[str, str] = {}
        for source in self.model:
            path = Path(source.removeprefix("hf-hub:"))
            name = path.resolve().parent.name if path.name == "final" else path.name or str(path)
            names[name if name not in names else source] = source
        require(len(names) == len(self.model), "--model: the same model twice")
        check_model_names(names)
        return names

    def load(
        self, names: dict[str, str], device: str
    ) -> tuple["EmbeddingCache", dict[str, "DualEncoder"], dict[str, Any]]:
        """Load the models. Returns the cache, the models by name, and what results files say about them."""
        import torch

        from mmrep.distributed import check_precision
        from mmrep.evaluation.embedding.cache import EmbeddingCache, model_digest
        from mmrep.evaluation.embedding.embed import shard_for_evaluation
        from mmrep.model.load import load

        cache, models, about = EmbeddingCache(), {}, {}
        for name, source in names.items():
            model = load(source, device, allow_pickle=self.allow_pickle)
            model.precision = self.precision or model.precision
            check_precision(model.precision, "--precision")
            if os.environ.get("ACCELERATE_USE_FSDP") == "true":
                shard_for_evaluation(model)
            models[name] = model
            about[name] = {"source": source, "digest": model_digest(cache, model), "precision": model.precision}
        packages = ("torch", "timm", "open_clip_torch")
        versions = {"mmrep": __version__} | {package: version(package) for package in packages}
        kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
        return cache, models, {"models": about, "versions": versions, "device": kind}


def check_sets(sets: list[SetConfig]) -> None:
    """Check what can be found wrong with sets before torch is imported.

    Raises:
        ConfigError: see `mmrep.evaluation.sources.check.check_set`; two sets would write to one file.
    """
    from mmrep.evaluation.outcome_names import check_set_names
    from mmrep.evaluation.sources.check import check_set

    for each in sets:
        check_set(each)
    check_set_names([(each.result_name, each.tasks) for each in sets])


def open_local(sets: list[SetConfig]) -> list["EvalSet | SetConfig"]:
    """Open local sets, so that what is wrong with one is found before any work is done. Others stay as they are."""
    from mmrep.data.remote import is_remote
    from mmrep.evaluation.sets import open_set

    return [each if is_remote(each.path) else open_set(each) for each in sets]


def is_quiet() -> bool:
    """Return whether progress bars are hidden: on all processes but the first, and without a terminal."""
    return not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"


def find_device(asked: str | None) -> str:
    """Return the device to use after trying it. With several processes, each has its own.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    from mmrep import distributed

    if distributed.launched() > 1:
        require(
            asked in (None, "cpu", "cuda"),
            f"--device {asked}: each of several processes has a device of its own: give cpu or cuda",
        )
        return str(distributed.start(cpu=asked == "cpu"))
    device = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def require_writable(option: str, folder: Path) -> None:
    """Make a folder, and check that a file can be written there. The first of several processes does it.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{option} {folder}: can't write there: {error.strerror}") from error


def require_free(option: str, folder: Path) -> None:
    """Raise ConfigError unless a folder is new or empty."""
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{option} {folder}: expected a new folder or an empty one")
