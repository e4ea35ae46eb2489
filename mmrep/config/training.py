"""Optimiser, schedule, and the training loop."""

import typing
from dataclasses import dataclass
from typing import Literal

from mmrep.config.checks import above, at_least, one_of, require, within

Schedule = Literal["cosine", "constant", "cooldown"]
Precision = Literal["fp32", "bf16"]


def in_steps(length: float, steps: int) -> int:
    """Return a length in steps: a number below 1 is a share of all `steps`, any other is a number of steps."""
    return round(length * steps) if length < 1 else int(length)


def check_length(field: str, length: float) -> None:
    """Raise ConfigError unless `length` is a share below 1, or a whole number of steps."""
    at_least(field, length, 0)
    require(
        length < 1 or length == int(length),
        f"{field}: expected a whole number of steps, or a share of them below 1, got {length}",
    )


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning-rate schedule, counted in steps.

    Attributes:
        lr: Peak learning rate.
        beta1: Decay rate of AdamW's first moment.
        beta2: Decay rate of AdamW's second moment.
        eps: AdamW's epsilon.
        weight_decay: Weight decay of matrices. Vectors, gains, biases, position and class embeddings, exponents and
            logit scale have none.
        warmup: Length of the linear warm-up, in steps or, below 1, as a share of all steps.
        schedule: Schedule after warm-up: cosine falls to min_lr, constant stays, cooldown stays and then falls linearly
            to min_lr.
        cooldown: Length of the fall of the schedule cooldown, in steps or, below 1, as a share of all steps.
        min_lr: Last learning rate of the schedules cosine and cooldown.
        clip_norm: Largest gradient norm. Larger gradients are scaled down; null does not clip.
    """

    lr: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup: float = 0.05
    schedule: Schedule = "cosine"
    cooldown: float = 0.2
    min_lr: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        above("optim.lr", self.lr, 0)
        within("optim.beta1", self.beta1, 0, 0.99999)
        within("optim.beta2", self.beta2, 0, 0.99999)
        above("optim.eps", self.eps, 0)
        at_least("optim.weight_decay", self.weight_decay, 0)
        check_length("optim.warmup", self.warmup)
        check_length("optim.cooldown", self.cooldown)
        one_of("optim.schedule", self.schedule, typing.get_args(Schedule))
        require(
            0 <= self.min_lr <= self.lr, f"optim.min_lr: expected a value from 0 to lr {self.lr}, got {self.min_lr}"
        )
        above("optim.clip_norm", self.clip_norm, 0)
        if self.schedule == "cooldown":
            require(self.cooldown > 0, "optim.cooldown: expected the length of the fall, got 0")


@dataclass(frozen=True)
class TrainingConfig:
    """Length of training, batch size, precision, logging and checkpoints.

    Attributes:
        steps: Number of optimiser steps.
        global_batch: Pairs contrasted with each other in one step, over all processes.
        micro_batch: Pairs in one forward pass of one process. By default global_batch / processes.
        precision: Precision of the towers: bf16 under autocast, fp32, or auto, which is bf16 on GPUs that have it.
            Parameters stay fp32.
        compile: Compile the model with torch.compile.
        grad_checkpointing: Recompute each block's activations in the backward pass, to save memory.
        log_every: Steps between two lines of metrics.jsonl.
        evaluate_every: Steps between two evaluations on the validation split; 0 evaluates only at the end.
        checkpoint_steps: Steps between two checkpoints; 0 makes none by steps.
        checkpoint_minutes: Minutes between two checkpoints; null makes none by time.
        keep_checkpoints: Number of the latest checkpoints to keep.
    """

    steps: int = 1000
    global_batch: int = 256
    micro_batch: int | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    grad_checkpointing: bool = False
    log_every: int = 10
    evaluate_every: int = 0
    checkpoint_steps: int = 0
    checkpoint_minutes: float | None = 30.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "keep_checkpoints"):
            at_least(f"training.{name}", getattr(self, name), 1)
        at_least("training.global_batch", self.global_batch, 2)
        at_least("training.micro_batch", self.micro_batch, 1)
        one_of("training.precision", self.precision, ("auto", *typing.get_args(Precision)))
        at_least("training.evaluate_every", self.evaluate_every, 0)
        at_least("training.checkpoint_steps", self.checkpoint_steps, 0)
        above("training.checkpoint_minutes", self.checkpoint_minutes, 0)

    def resolved(self) -> Precision:
        """Return the precision. `auto` has to be replaced before (`mmrep.training.build.with_precision`)."""
        assert self.precision != "auto", "the precision depends on the device"
        return self.precision

    def local_batch(self, processes: int) -> int:
        """Return the number of pairs that a process sees in a step.

        Raises:
            ConfigError: `micro_batch × processes` is not `global_batch`; there is no gradient cache yet.
        """
        require(
            self.global_batch % processes == 0,
            f"training.global_batch: expected a multiple of the {processes} processes, got {self.global_batch}",
        )
        local = self.global_batch // processes
        require(
            self.micro_batch in (None, local),
            f"training.micro_batch: {self.micro_batch} × {processes} processes = {(self.micro_batch or 0) * processes} "
            f"pairs, but global_batch is {self.global_batch}; leave micro_batch out or set it to {local} "
            "(contrasting across several micro-batches needs a gradient cache, which this version does not have)",
        )
        return local
