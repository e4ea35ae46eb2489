"""Batches of a run: the batch of a step is a pure function of (seed, step)."""

import hashlib
import os
import signal
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmrep.batch import Batch, Tokenizer
from mmrep.config.data import DataConfig
from mmrep.data.decode import read_image
from mmrep.data.draws import Purpose, random_bits, uniforms
from mmrep.data.order import ORDER_VERSION, Order
from mmrep.data.shards import DataError
from mmrep.data.sources import Sample, Sources
from mmrep.data.transforms import CROP_DRAWS, crop_resize, kept_patches, random_crop_box, resize_center


class Plan(NamedTuple):
    """What decides every batch of a run.

    Attributes:
        seed: of order and draws.
        global_batch: pairs of a step over all processes.
        steps: steps of the run.
        size: rows and columns of the images.
        patches: patches of the grid, and how many of them are kept (equal without patch dropout).
    """

    seed: int
    global_batch: int
    steps: int
    size: tuple[int, int]
    patches: tuple[int, int]


class Loaded(NamedTuple):
    """A batch, and a checksum of what is in it.

    Attributes:
        batch: the pairs.
        checksum: the sum over pairs, modulo 2^64, of a hash of (slot, id, tokens, pixels): sums over the processes
            of a step do not depend on how many there are.
    """

    batch: Batch
    checksum: Tensor


class Steps(Dataset[Loaded | DataError]):
    """One process's batch of every step; an item's index is the step."""

    def __init__(
        self, sources: Sources, config: DataConfig, tokenizer: Tokenizer, plan: Plan, rank: int, processes: int
    ) -> None:
        self.sources = sources
        self.config = config
        self.tokenizer = tokenizer
        self.plan = plan
        self.local = plan.global_batch // processes
        self.offset = rank * self.local
        self.order = Order([len(numbers) for numbers in sources.train], sources.weights, plan.seed)

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Loaded | DataError:
        # An exception would reach the trainer as a worker's traceback; as a value it arrives whole.
        try:
            return self.load(step)
        except DataError as error:
            return error

    def load(self, step: int) -> Loaded:
        """The batch of a step.

        Raises:
            DataError: a sample that can't be read.
        """
        seed, start = self.plan.seed, step * self.plan.global_batch + self.offset
        source, position = self.order.slots(start, self.local)
        numbers = [int(self.sources.train[s][p]) for s, p in zip(source, position, strict=True)]
        samples = [self.sources.sample(number) for number in numbers]
        picks = random_bits(seed, Purpose.CAPTION, start, self.local)
        captions = [s.captioner.draw(s.shard, s.row, pick) for s, pick in zip(samples, picks, strict=True)]
        tokens, lengths = self.tokenizer.batch([caption.text for caption in captions])
        batch = Batch(
            images=self._images(samples, start),
            tokens=tokens,
            lengths=lengths,
            ids=torch.tensor(numbers),
            groups=torch.tensor([caption.group for caption in captions]),
            captions=torch.tensor([caption.choice for caption in captions]),
            kept=self._kept(start),
        )
        return Loaded(batch, checksum(batch, start))

    def _images(self, samples: list[Sample], start: int) -> Tensor:
        seed, count = self.plan.seed, len(samples)
        crops = uniforms(seed, Purpose.CROP, start, count, CROP_DRAWS)
        flips = uniforms(seed, Purpose.FLIP, start, count)[:, 0] < self.config.flip
        images = torch.empty((count, 3, *self.plan.size), dtype=torch.uint8)
        for i, sample in enumerate(samples):
            image = read_image(sample.shard, sample.row, self.config.max_pixels)
            if self.config.crop == "resize":
                image = resize_center(image, self.plan.size)
                images[i] = image.flip(2) if flips[i] else image
            else:
                height, width = image.shape[1:]
                box = random_crop_box(height, width, self.config.min_scale, crops[i])
                images[i] = crop_resize(image, box, self.plan.size, bool(flips[i]))
        return images

    def _kept(self, start: int) -> Tensor | None:
        patches, keep = self.plan.patches
        if keep == patches:
            return None
        return kept_patches(uniforms(self.plan.seed, Purpose.PATCHES, start, self.local, patches), keep)


def checksum(batch: Batch, start: int) -> Tensor:
    """See `Loaded`; `start` is the slot of the first pair. Shape (1,), int64."""
    total = 0
    for i in range(len(batch.ids)):
        text = batch.tokens[i, : int(batch.lengths[i])].numpy().tobytes()
        kept = b"" if batch.kept is None else batch.kept[i].numpy().tobytes()
        pixels = zlib.crc32(batch.images[i].numpy().data)
        content = np.array([start + i, int(batch.ids[i]), int(batch.captions[i]), pixels], dtype="<i8").tobytes()
        digest = hashlib.blake2b(content + text + kept, digest_size=8).digest()
        total += int.from_bytes(digest, "little")
    return torch.tensor([wrap(total)])


def wrap(total: int) -> int:
    """An integer modulo 2^64, as a signed number."""
    return (total + 2**63) % 2**64 - 2**63


def default_workers(processes_here: int) -> int:
    """Loader processes of one training process: its share of the cores, at most 8; none where that share is below 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(processes_here, 1)
    return 0 if share < 4 else min(share - 1, 8)


def batches(steps: Steps, first: int, workers: int, prefetch: int = 2, pin_memory: bool = False) -> Iterator[Loaded]:
    """The batches of steps first, first + 1, …, in order.

    Raises:
        DataError: a sample that can't be read.
    """
    loader: DataLoader[Loaded | DataError] = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, steps.plan.steps),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    for item in loader:
        if isinstance(item, DataError):
            raise item
        yield item


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the trainer ends after its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def data_state(steps: Steps) -> dict[str, object]:
    """What has to be the same for a resumed run to continue with the same batches."""
    config, plan = steps.config, steps.plan
    transform = [config.crop, config.min_scale, config.flip, list(plan.size), list(plan.patches)]
    return {
        "order_version": ORDER_VERSION,
        "seed": plan.seed,
        "global_batch": plan.global_batch,
        "weights": steps.sources.weights,
        "shards": steps.sources.digest(),
        "captions": steps.sources.captions,
        "transform": transform,
        "tokenizer": steps.tokenizer.digest(),
    }
