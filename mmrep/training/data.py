"""The data of a run: the batches of a process, image sizes, messages at the start."""

import logging
import os
import time
from collections.abc import Callable

from accelerate import Accelerator

from mmrep.config.checks import ConfigError
from mmrep.config.tree import TrainConfig
from mmrep.data.loader import Phase, Plan, Steps, default_workers
from mmrep.data.pairs import keep_decoded
from mmrep.data.sources import Sources
from mmrep.model.dual_encoder import DualEncoder

LOG = logging.getLogger("mmrep")


def loader_workers(config: TrainConfig) -> int:
    """Return the number of loader processes of this process."""
    workers = config.data.workers
    return default_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if workers is None else workers


def build_steps(config: TrainConfig, model: DualEncoder, sources: Sources, accelerator: Accelerator) -> Steps:
    """Return the batches of this process."""
    plan = Plan(config.seed_of("data"), config.training.global_batch, config.training.steps, phases(config, model))
    with accelerator.local_main_process_first():
        decoded = keep_decoded(sources, config.data)
    return Steps(
        sources, config.data, model.tokenizer, plan, accelerator.process_index, accelerator.num_processes, decoded
    )


def phases(config: TrainConfig, model: DualEncoder) -> tuple[Phase, ...]:
    """Return the image size of every step.

    Raises:
        ConfigError: the trunk does not take a size, or the last one is not the model's.
    """
    found = []
    for first, size in sorted((config.data.sizes or {0: 0}).items()):
        pixels = (size, size) if size else model.image.size
        try:
            rows, columns = model.image.grid_of(pixels)
        except ConfigError as error:
            raise ConfigError(f"data.sizes: {error}") from error
        keep = max(1, round(rows * columns * (1 - config.model.image.patch_dropout)))
        found.append(Phase(first, pixels, (rows * columns, keep)))
    if found[-1].size != model.image.size:
        raise ConfigError(f"data.sizes: the last one has to be the model's, {model.image.size}, got {found[-1].size}")
    if found[-1].first >= config.training.steps:
        raise ConfigError(
            f"data.sizes: the model's own size begins at step {found[-1].first}, but training.steps is "
            f"{config.training.steps}: it would never be trained at"
        )
    return tuple(found)


def log_downloads(sources: Sources) -> None:
    """Log the share of img2dataset's lists that was downloaded, where its statistics are there."""
    catalog = sources.catalog
    accounted = catalog.listed > 0
    if accounted.any():
        listed, there = int(catalog.listed.sum()), int(catalog.samples[accounted].sum())
        LOG.info("%s of %s listed rows were downloaded (%.1f%%)", f"{there:,}", f"{listed:,}", 100 * there / listed)


def index_progress() -> Callable[[int, int], None]:
    """Return a function that logs from time to time how many shards are indexed."""
    last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            last = time.monotonic()
            LOG.info("indexing shards: %d of %d (`mmrep data index` does it beforehand)", done, total)

    return say
