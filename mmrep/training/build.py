"""Building a run: all that the loop needs is built and checked before it starts."""

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from mmrep import distributed
from mmrep.batch import Batch
from mmrep.config.checks import ConfigError
from mmrep.config.loss import Duplicates
from mmrep.config.tree import TrainConfig
from mmrep.data.ahead import Ahead
from mmrep.data.inventory import write_inventory
from mmrep.data.loader import Loaded, Steps, batches, data_state, wrap
from mmrep.data.sources import Sources, check_contrast
from mmrep.evaluation.sets import EvalSet, open_set, validation_sets
from mmrep.files import write_errors, write_json, write_text
from mmrep.loss import total_loss
from mmrep.model.create import build_model
from mmrep.model.dual_encoder import DualEncoder, Embeddings
from mmrep.model.load import write_model_config
from mmrep.training.checkpoint import Diverged, find_checkpoint, save_checkpoint
from mmrep.training.data import build_steps, index_progress, loader_workers, log_downloads
from mmrep.training.optim import build_optimizer
from mmrep.training.output import INITIAL, INVENTORY, RUN_CONFIG, check_output
from mmrep.training.resume import plain, resume, set_later_aside
from mmrep.training.tracking import Tracker
from mmrep.training.watch import DataWatch

LOG = logging.getLogger("mmrep")
Recipe = TypeVar("Recipe", bound=TrainConfig)


@dataclass
class Run:
    """A run that is ready to train.

    Attributes:
        config: the whole config.
        folder: folder of the run.
        accelerator: device and processes.
        model: the dual encoder.
        wrapped: the dual encoder as DDP wraps it.
        optimizer: AdamW.
        steps: the batches, by step.
        validation: the held-out samples.
        tests: the sets to evaluate on at the end.
        first_step: number of steps done before this start.
        seen: checksum of all batches before this start, and of this process's own batches since.
        watch: counts of bad samples and waiting times.
        tracker: metrics and progress.
    """

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    model: DualEncoder
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    steps: Steps
    validation: list[EvalSet]
    tests: list[EvalSet]
    first_step: int
    seen: list[int]
    watch: DataWatch
    tracker: Tracker

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.accelerator.device

    def batches(self) -> Iterator[Loaded]:
        """Yield the batches from `first_step` on."""
        pin = self.device.type == "cuda"
        workers, prefetch = loader_workers(self.config), self.config.data.prefetch
        ahead = Ahead(self.steps) if self.accelerator.is_local_main_process else None
        advance = ahead.advance if ahead else None
        begin = time.perf_counter()
        try:
            for loaded in batches(self.steps, self.first_step, workers, prefetch, pin, advance):
                self.watch.arrived(loaded, time.perf_counter() - begin)
                yield loaded
                begin = time.perf_counter()
        finally:
            if ahead:
                ahead.close()

    def loss(self, output: Embeddings, batch: Batch) -> Tensor:
        """Return the loss of this process's pairs against the pairs of all processes."""
        config = self.config.loss
        return total_loss(
            output.image,
            output.text,
            output.logit_scale,
            output.auxiliary,
            config,
            output.logit_bias,
            batch.groups,
            resolve_duplicates(config.duplicates, self.steps.sources.captions),
        )

    def checksum(self) -> int:
        """Return the checksum of all batches so far. It does not depend on the number of processes."""
        return wrap(self.seen[0] + distributed.sum_over_processes(wrap(self.seen[1]), self.device))

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps.

        Raises:
            Diverged: the model or the optimiser's state is no longer finite.
            CheckpointError: the checkpoint cannot be written.
        """
        state = {"data": data_state(self.steps), "samples_seen": step * self.steps.plan.global_batch}
        state |= {"checksum": self.checksum(), "bad_samples": self.watch.counts()}
        state |= {"config": plain(self.config.to_dict())}
        if self.accelerator.is_main_process:
            keep = self.config.training.keep_checkpoints
            try:
                save_checkpoint(
                    self.folder, step, self.model, self.optimizer, state, keep, partial(write_model_config, self.model)
                )
            except Diverged as error:
                raise self.diverged(str(error)) from error
        distributed.barrier()

    def diverged(self, what: str) -> Diverged:
        """Return the error that says what is no longer finite, what helps, and where to go on."""
        newest = find_checkpoint(self.folder, LOG.warning)
        kept = f"the last whole checkpoint is {newest}" if newest else "there is no checkpoint yet"
        return Diverged(f"{what}: lower optim.lr, set optim.clip_norm 1, or lengthen optim.warmup; {kept}")


def resolve_duplicates(duplicates: Duplicates, captions: list[str]) -> Duplicates:
    """Return what `auto` means: mask where any source takes captions from classes."""
    if duplicates != "auto":
        return duplicates
    return "mask" if "cls" in captions else "negative"


def build_run(config: TrainConfig, label: str = "train") -> Run:
    """Build data, model and optimiser, and resume if the config asks for it.

    Args:
        config: the whole config.
        label: text before the progress bar.

    Raises:
        ConfigError: parts of the config do not fit together, or a checkpoint has other data.
        DataError: a shard is damaged.
    """
    config = with_precision(config, distributed.start())
    distributed.check_precision(config.training.resolved())
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        raise ConfigError("the launcher asks for FSDP, which training does not use: take a config of launch/ (DDP)")
    if distributed.rank() == 0:
        check_output(config)
    accelerator = Accelerator(mixed_precision="no")  # the model enters autocast itself, in every entry point
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        kind = accelerator.distributed_type.value
        raise ConfigError(f"accelerate's {kind} is not supported yet: use a config of launch/ (one process a GPU, DDP)")
    local = config.training.local_batch(accelerator.num_processes)
    folder = Path(config.output_dir)
    with accelerator.local_main_process_first():  # the other processes of the host then find the indexes in the cache
        sources = Sources(config.data, index_progress())
    tests = [open_set(each) for each in config.evaluation.sets]
    model = build_model(
        config.model, config.seed_of("trunk"), config.loss.kind == "sigmoid", head_seed=config.seed_of("head")
    )
    model.precision = config.training.resolved()
    model.set_grad_checkpointing(config.training.grad_checkpointing)
    steps = build_steps(config, model, sources, accelerator)
    if len(sources) < config.training.global_batch:
        raise ConfigError(
            f"training.global_batch: {config.training.global_batch} is more than the {len(sources)} training samples, "
            "so that some would meet themselves as negatives; lower it"
        )
    if resolve_duplicates(config.loss.duplicates, sources.captions) != "negative":
        check_contrast(sources)
    assert local == steps.local, "the loader and the config agree on the local batch"
    initial = parameter_digests(model)
    model.to(accelerator.device)
    optimizer = build_optimizer(model, model.no_weight_decay(), config.optim, model.lr_scales())
    state = resume(config, folder, model, optimizer, steps)
    first = int(state.get("step", 0))
    distributed.begin(first)
    distributed.barrier()  # every process has read its checkpoint before it may be moved
    if accelerator.is_main_process:
        log_downloads(sources)
        set_later_aside(config, first)
        describe_run(config, folder, initial)
        with write_errors(folder / INVENTORY):
            write_inventory(sources, folder / INVENTORY)
    distributed.barrier()  # every process finds the folder
    if config.training.compile:
        model.compile()
    if accelerator.is_main_process:
        LOG.info("%s", start_line(config, model, accelerator, len(sources), first))
    return Run(
        config=config,
        folder=folder,
        accelerator=accelerator,
        model=model,
        wrapped=accelerator.prepare_model(model),
        optimizer=optimizer,
        steps=steps,
        validation=validation_sets(sources, config.data.validation, config.data.max_bad_fraction > 0),
        tests=tests,
        first_step=first,
        seen=[int(state.get("checksum", 0)), 0],
        watch=DataWatch(steps, folder, accelerator.device, loader_workers(config), first, state.get("bad_samples")),
        tracker=Tracker(
            folder,
            first,
            config.training.steps,
            config.training.global_batch,
            len(sources),
            accelerator.is_main_process,
            label,
        ),
    )


def start_line(config: TrainConfig, model: DualEncoder, accelerator: Accelerator, samples: int, first: int) -> str:
    """Return the line that says what is about to be trained, on what, and where it is written."""
    several = f"{accelerator.num_processes} × " if accelerator.num_processes > 1 else ""
    cuda = accelerator.device.type == "cuda"
    device = torch.cuda.get_device_name(accelerator.device) if cuda else f"CPU ({torch.get_num_threads()} threads)"
    image, text = (sum(p.numel() for p in tower.parameters()) / 1e6 for tower in (model.image, model.text))
    steps, batch = config.training.steps, config.training.global_batch
    went = f"steps {first:,} to {steps:,}" if first else f"{steps:,} steps"
    return (
        f"{several}{device}, {config.training.precision}; pool {model.config.pooling.label}, parameters {image:.1f} M "
        f"image + {text:.1f} M text; {samples:,} pairs, {went} of {batch:,} ({steps * batch / samples:.1f} epochs); "
        f"written to {config.output_dir}"
    )


def with_precision(config: Recipe, device: torch.device) -> Recipe:
    """Return the config with the precision that `auto` means on a device: bf16 on GPUs that have it, else fp32."""
    if config.training.precision != "auto":
        return config
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    training = dataclasses.replace(config.training, precision="bf16" if native else "fp32")
    return dataclasses.replace(config, training=training)


def describe_run(config: TrainConfig, folder: Path, initial: dict[str, str]) -> None:
    """Write the resolved config and the digests of the initial values."""
    write_text(folder / RUN_CONFIG, yaml.safe_dump(plain(config.to_dict()), sort_keys=False))
    write_json(folder / INITIAL, initial, indent=1)


def parameter_digests(model: nn.Module) -> dict[str, str]:
    """Return the shape and a digest of the values of every parameter."""
    digests = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().cpu().contiguous().numpy().tobytes()
        digests[name] = f"{tuple(parameter.shape)} {hashlib.blake2b(values, digest_size=8).hexdigest()}"
    return digests
