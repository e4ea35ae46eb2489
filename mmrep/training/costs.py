"""Costs of a model: parameters, multiply-adds, inference speed, peak memory."""

import resource
import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmrep.model.dual_encoder import DualEncoder


def count_parameters(model: DualEncoder) -> int:
    """Return the number of parameters of the whole model, trained or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def image_gmacs(model: DualEncoder) -> float:
    """Return the multiply-adds of the image tower for one image, in 10^9: matrix products, convolutions, attention."""
    image = torch.zeros((1, 3, *model.image.size), dtype=torch.uint8, device=model.device)
    training = model.training
    model.eval()
    # Not in inference mode, because the counter hooks the graph of parameters that are inputs, as learned queries are.
    with FlopCounterMode(display=False) as counter:
        model.encode_image(image)
    model.train(training)
    return counter.get_total_flops() / 2e9


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_mb`. On CPUs only Linux supports this."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory since the last reset in MB (10^6 bytes): allocated on a GPU, or resident on CPUs."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except (OSError, IndexError, ValueError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
