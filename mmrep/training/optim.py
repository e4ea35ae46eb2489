"""AdamW, its decay groups, and the learning rate of every step."""

import math

import torch
from torch import nn

from mmrep.config.training import OptimConfig


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: a pure function, so that a resumed run continues on the same curve.

    Args:
        step: from 0.
        steps: of the whole run.
        config: warm-up, schedule, peak and last rate.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cooldown":
        left = (steps - step) / config.cooldown
        return config.min_lr + (config.lr - config.min_lr) * min(1.0, left)
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def decays(name: str, parameter: nn.Parameter, exempt: set[str]) -> bool:
    """Whether weight decay applies: to matrices that the model does not exempt."""
    return parameter.ndim >= 2 and name not in exempt


def build_optimizer(model: nn.Module, exempt: set[str], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over two groups, with and without weight decay.

    Args:
        model: whose trainable parameters are optimised.
        exempt: names that must not decay (`model.no_weight_decay()`).
        config: learning rate, betas, epsilon, decay.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trainable if decays(name, p, exempt)], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trainable if not decays(name, p, exempt)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Sets the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value
