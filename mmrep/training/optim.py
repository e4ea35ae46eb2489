"""AdamW, its parameter groups, and the learning rate of every step."""

import math
from collections.abc import Mapping
from operator import itemgetter

import torch
from torch import nn

from mmrep.config.training import OptimConfig, in_steps


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of a step. It is a pure function, so that a resumed run continues on the same curve.

    Args:
        step: number of the step, from 0.
        steps: number of steps of the whole run.
        config: warm-up, schedule, peak and last rate.
    """
    warmup = in_steps(config.warmup, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cooldown":
        left = (steps - step) / in_steps(config.cooldown, steps)
        return config.min_lr + (config.lr - config.min_lr) * min(1.0, left)
    done = (step - warmup) / max(1, steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def decays(name: str, parameter: nn.Parameter, exempt: set[str]) -> bool:
    """Return whether weight decay applies to a parameter: to matrices that the model does not exempt."""
    return parameter.ndim >= 2 and name not in exempt


def build_optimizer(
    model: nn.Module, exempt: set[str], config: OptimConfig, lr_scales: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """Return a fused AdamW with one group for each weight decay and scale of the learning rate.

    Args:
        model: the module whose trainable parameters are optimised.
        exempt: names of parameters without weight decay (`model.no_weight_decay()`).
        config: learning rate, betas, epsilon, decay.
        lr_scales: learning rates relative to `config.lr`, by name of the parameter (`model.lr_scales()`).
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if decays(name, parameter, exempt) else 0.0
            groups.setdefault(((lr_scales or {}).get(name, 1.0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), params in sorted(groups.items(), reverse=True, key=itemgetter(0))
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group to `value` times the scale of the group."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["lr_scale"]
