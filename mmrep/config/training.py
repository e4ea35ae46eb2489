"""Optimiser, schedule, and how the training loop runs."""

import typing
from dataclasses import dataclass
from typing import Literal

from mmrep.config.checks import above, at_least, one_of, require, within

Schedule = Literal["cosine", "constant", "cooldown"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning-rate schedule, counted in steps.

    Attributes:
        lr: peak learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: AdamW's epsilon.
        weight_decay: for matrices; vectors, gains, biases, embeddings of position and class, exponents and logit
            scale have none.
        warmup: steps of linear warm-up.
        schedule: after warm-up: `cosine` to `min_lr`, `constant`, or `cooldown` (constant, then linear to `min_lr`).
        cooldown: length of the cooldown in steps.
        min_lr: last learning rate of `cosine` and `cooldown`.
        clip_norm: largest gradient norm; None does not clip.
    """

    lr: float = 5e-4
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    warmup: int = 0
    schedule: Schedule = "cosine"
    cooldown: int = 0
    min_lr: float = 0.0
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        above("optim.lr", self.lr, 0)
        within("optim.beta1", self.beta1, 0, 0.99999)
        within("optim.beta2", self.beta2, 0, 0.99999)
        above("optim.eps", self.eps, 0)
        at_least("optim.weight_decay", self.weight_decay, 0)
        at_least("optim.warmup", self.warmup, 0)
        at_least("optim.cooldown", self.cooldown, 0)
        one_of("optim.schedule", self.schedule, typing.get_args(Schedule))
        require(
            0 <= self.min_lr <= self.lr, f"optim.min_lr: expected a value from 0 to lr {self.lr}, got {self.min_lr}"
        )
        above("optim.clip_norm", self.clip_norm, 0)
        if self.schedule == "cooldown":
            require(self.cooldown > 0, "optim.cooldown: schedule 'cooldown' needs its length in steps")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and on what batches.

    Attributes:
        steps: optimiser steps.
        global_batch: pairs contrasted together in one step, over all processes.
        micro_batch: pairs in one forward pass of one process; None: global_batch / processes.
        precision: `fp32` or `bf16` (autocast; parameters stay fp32).
        compile: torch.compile the model.
        grad_checkpointing: recompute each block's activations in the backward pass.
        log_every: steps between two lines of metrics.jsonl.
        evaluate_every: steps between two evaluations on the validation split; 0: only at the end.
        checkpoint_steps: steps between two checkpoints; 0: none by steps.
        checkpoint_minutes: minutes between two checkpoints; None: none by time.
        keep_checkpoints: how many of the latest are kept.
    """

    steps: int = 1000
    global_batch: int = 256
    micro_batch: int | None = None
    precision: Precision = "fp32"
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
        one_of("training.precision", self.precision, typing.get_args(Precision))
        at_least("training.evaluate_every", self.evaluate_every, 0)
        at_least("training.checkpoint_steps", self.checkpoint_steps, 0)
        above("training.checkpoint_minutes", self.checkpoint_minutes, 0)

    def local_batch(self, processes: int) -> int:
        """Pairs a process sees in a step.

        Raises:
            ConfigError: `micro_batch × processes` is not `global_batch` (there is no gradient cache yet).
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
