"""Batches of a run: the batch of a step is a pure function of (seed, step)."""

import hashlib
import os
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmrep.batch import Batch, Tokenizer
from mmrep.config.checks import MmrepError
from mmrep.config.data import DataConfig
from mmrep.data.decoded import DecodedImages
from mmrep.data.draws import Purpose, uniforms
from mmrep.data.order import ORDER_VERSION, Order
from mmrep.data.pairs import Bad, Draws, Pairs, Seconds
from mmrep.data.sources import Sources
from mmrep.data.transforms import kept_patches


class Phase(NamedTuple):
    """Steps that share an image size.

    Attributes:
        first: first step.
        size: rows and columns of the images.
        patches: number of patches of the grid, and number of kept ones (equal without patch dropout).
    """

    first: int
    size: tuple[int, int]
    patches: tuple[int, int]


class Plan(NamedTuple):
    """The settings that determine every batch of a run.

    Attributes:
        seed: seed of order and draws.
        global_batch: number of pairs of a step over all processes.
        steps: number of steps of the run.
        phases: image sizes by step; the first phase begins at step 0.
    """

    seed: int
    global_batch: int
    steps: int
    phases: tuple[Phase, ...]

    def phase(self, step: int) -> Phase:
        """Return the stage of a step."""
        return max((phase for phase in self.phases if phase.first <= step), key=lambda phase: phase.first)


class Loaded(NamedTuple):
    """A batch and facts about it.

    Attributes:
        batch: the pairs.
        checksum: sum over pairs, modulo 2^64, of a hash of (slot, id, tokens, pixels). The sum over all processes
            of a step does not depend on their number.
        bad: samples that could not be used, and were replaced.
        seconds: time that loading took, by part.
    """

    batch: Batch
    checksum: Tensor
    bad: list[Bad]
    seconds: Seconds


class Steps(Dataset[Loaded | MmrepError]):
    """The batches of one process; the index of an item is the step."""

    def __init__(
        self,
        sources: Sources,
        config: DataConfig,
        tokenizer: Tokenizer,
        plan: Plan,
        rank: int,
        processes: int,
        decoded: DecodedImages | None = None,
    ) -> None:
        self.sources = sources
        self.config = config
        self.tokenizer = tokenizer
        self.plan = plan
        self.local = plan.global_batch // processes
        self.offset = rank * self.local
        self.order = Order(sources.groups, sources.weights, plan.seed, config.shuffle_block)
        self.pairs = Pairs(sources, self.order, config, decoded)

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> Loaded | MmrepError:
        # An exception would reach the trainer as the traceback of a worker; a value arrives unchanged.
        try:
            return self.load(step)
        except MmrepError as error:
            return error

    def load(self, step: int) -> Loaded:
        """Return the batch of a step; raise DataError if a sample can't be read."""
        start, phase = step * self.plan.global_batch + self.offset, self.plan.phase(step)
        group, position = (part.tolist() for part in self.order.slots(start, self.local))
        draws = Draws.of(self.plan.seed, start, self.local, self.config.flip)
        images = torch.empty((self.local, 3, *phase.size), dtype=torch.uint8)
        if get_worker_info():
            images = images.share_memory_()  # the trainer reads it there; otherwise it would be copied later
        pairs = []
        for i in range(self.local):
            pair = self.pairs.load(start + i, group[i], position[i], draws, i, phase.size)
            images[i] = pair.image
            pairs.append(pair)
        begin = time.perf_counter()
        captions = [pair.caption for pair in pairs]
        tokens, lengths = self.tokenizer.batch([caption.text for caption in captions])
        seconds = Seconds(text=time.perf_counter() - begin)
        batch = Batch(
            images=images,
            tokens=tokens,
            lengths=lengths,
            ids=torch.tensor([pair.number for pair in pairs]),
            groups=torch.tensor([caption.group for caption in captions]),
            captions=torch.tensor([caption.choice for caption in captions]),
            kept=self._kept(start, *phase.patches),
        )
        bad = [each for pair in pairs for each in pair.bad]
        return Loaded(batch, checksum(batch, start), bad, sum((pair.seconds for pair in pairs), seconds))

    def _kept(self, start: int, patches: int, keep: int) -> Tensor | None:
        if keep == patches:
            return None
        return kept_patches(uniforms(self.plan.seed, Purpose.PATCHES, start, self.local, patches), keep)


def checksum(batch: Batch, start: int) -> Tensor:
    """Return the checksum of a batch whose first pair has slot `start`: shape (1,), int64; see `Loaded`."""
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
    """Return an integer modulo 2^64 as a signed number."""
    return (total + 2**63) % 2**64 - 2**63


def default_workers(processes_here: int) -> int:
    """Return the number of loader processes: this process's share of the cores, at most 8; 0 for a share below 4."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(processes_here, 1)
    return 0 if share < 4 else min(share - 1, 8)


def batches(
    steps: Steps,
    first: int,
    workers: int,
    prefetch: int = 2,
    pin_memory: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Iterator[Loaded]:
    """Yield the batches of steps first, first + 1, …, in order.

    Args:
        steps: the batches.
        first: the first step.
        workers: number of loader processes.
        prefetch: number of batches that each of them prepares ahead.
        pin_memory: return batches in pinned memory.
        advance: called with each step before its batch is awaited, after the loader processes were started.

    Raises:
        DataError: a sample can't be read.
    """
    loader: DataLoader[Loaded | MmrepError] = DataLoader(
        steps,
        batch_size=None,
        sampler=range(first, steps.plan.steps),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
    )
    items: Any = iter(loader)
    try:
        for step in range(first, steps.plan.steps):
            if advance:
                advance(step)
            item = next(items)
            if isinstance(item, MmrepError):
                raise item
            yield item
    finally:
        # A traceback may keep the iterator alive until the program ends. The program would then wait forever for its
        # workers, which ignore SIGTERM.
        if workers:
            items._shutdown_workers()


def _start_worker(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group. The trainer ends after its step, and needs the
    # workers until then.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def data_state(steps: Steps) -> dict[str, object]:
    """Return the settings that must not change if a resumed run is to continue with the same batches."""
    config, plan, sources = steps.config, steps.plan, steps.sources
    transform: dict[str, object] = {
        name: getattr(config, name) for name in ("crop", "min_scale", "flip", "dct_scaling")
    }
    transform["phases"] = [[phase.first, *phase.size, *phase.patches] for phase in plan.phases]
    return {
        "order_version": ORDER_VERSION,
        "seed": plan.seed,
        "global_batch": plan.global_batch,
        "shuffle_block": config.shuffle_block,
        "weights": sources.weights,
        "captions": [source.caption_shares() for source in config.train],
        "class_texts": [captioner.digest for captioner in sources.captioners],
        "validation_fraction": config.validation.fraction,
        "subsets": [selection and selection.digest for selection in sources.selections],
        "shards": len(sources.catalog),
        "samples": len(sources),
        "sources": sources.digest(),
        "transform": transform,
        "tokenizer": steps.tokenizer.digest(),
    }
