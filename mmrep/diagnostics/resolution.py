"""Accuracy and latency of one model at several image sizes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from mmrep.config.checks import at_least
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.resolution import at_resolution

SECONDS = 0.5
"""Default duration of a measurement of latency."""


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
def latency(model: DualEncoder, batch: int = 32, seconds: float | None = None) -> float:
    """Return the seconds that the image tower takes for an image, in the fastest batch (others may share the machine).

    Args:
        model: the model.
        batch: images in a batch; 1 measures the latency of a single request.
        seconds: duration of the measurement, after a warm-up; None takes half a second.

    Raises:
        ConfigError: `batch` is below 1.
    """
    at_least("latency: batch", batch, 1)
    images = torch.zeros((batch, 3, *model.image.size), dtype=torch.uint8, device=model.device)
    training = model.training
    model.eval()
    names = {"encode": model.encode_image, "images": images}
    timer = Timer("encode(images)", globals=names, num_threads=torch.get_num_threads())
    measured = timer.blocked_autorange(min_run_time=SECONDS if seconds is None else seconds)
    model.train(training)
    return min(measured.times) / batch


def over_resolution(
    model: DualEncoder,
    sizes: Sequence[int | tuple[int, int]],
    accuracy: Callable[[DualEncoder], float],
    batch: int = 32,
    seconds: float | None = None,
) -> list[ResolutionPoint]:
    """Measure accuracy and latency at several image sizes (as in MMCAP, figure 8), in the order of `sizes`.

    Args:
        model: in evaluation mode.
        sizes: image sizes, as in `at_resolution`.
        accuracy: measures a model, whose `image.size` is the size of the images to use.
        batch: see `latency`.
        seconds: see `latency`.

    Raises:
        ConfigError: a size that the model can't be brought to.
    """
    points = []
    for size in sizes:
        other = at_resolution(model, size)
        spent = latency(other, batch, seconds)
        points.append(ResolutionPoint(other.image.size, other.image.patches, 1e3 * spent, accuracy(other)))
    return points
