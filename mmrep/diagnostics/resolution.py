"""Accuracy and latency of one model at several image sizes."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mmrep.config.checks import at_least
from mmrep.model.dual_encoder import DualEncoder, at_resolution

_WARM_UP = 2


class ResolutionPoint(NamedTuple):
    """One model at one image size.

    Attributes:
        size: rows and columns of the images in pixels.
        patches: number of patches.
        ms: milliseconds an image, in batches.
        accuracy: the figure that the caller measures.
    """

    size: tuple[int, int]
    patches: int
    ms: float
    accuracy: float


@torch.inference_mode()
def latency(model: DualEncoder, batch: int = 32, repeats: int = 10) -> float:
    """Return the seconds that the image tower takes for an image, in the fastest batch (others may share the machine).

    Args:
        model: in evaluation mode.
        batch: images in a batch; 1 measures the latency of a single request.
        repeats: measured batches; two warm-up batches come before them.

    Raises:
        ConfigError: `batch` or `repeats` below 1.
    """
    at_least("latency: batch", batch, 1)
    at_least("latency: repeats", repeats, 1)
    images = torch.zeros((batch, 3, *model.image.size), dtype=torch.uint8, device=model.device)
    times = []
    for _ in range(_WARM_UP + repeats):
        begin = time.perf_counter()
        model.encode_image(images)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - begin)
    return min(times[_WARM_UP:]) / batch


def over_resolution(
    model: DualEncoder,
    sizes: Sequence[int | tuple[int, int]],
    accuracy: Callable[[DualEncoder], float],
    batch: int = 32,
    repeats: int = 10,
) -> list[ResolutionPoint]:
    """Measure accuracy and latency at several image sizes (as in MMCAP, figure 8), in the order of `sizes`.

    Args:
        model: in evaluation mode.
        sizes: image sizes, as in `at_resolution`.
        accuracy: measures a model, whose `image.size` is the size of the images to use.
        batch: see `latency`.
        repeats: see `latency`.

    Raises:
        ConfigError: a size that the model can't be brought to.
    """
    points = []
    for size in sizes:
        other = at_resolution(model, size)
        seconds = latency(other, batch, repeats)
        points.append(ResolutionPoint(other.image.size, other.image.patches, 1e3 * seconds, accuracy(other)))
    return points
