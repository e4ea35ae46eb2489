"""Corrupted images as views, in the manner of ImageNet-C (Hendrycks & Dietterich, arXiv 1903.12261).

Fourteen of the paper's fifteen kinds at five severities, applied after resizing, to the pixels that a model receives.
The figures compare models with each other. They can't be compared with published mCE:

- The three noises, defocus and zoom blur, brightness, contrast, pixelate and JPEG follow the paper's definition, with
  other draws and roundings.
- Glass blur (random shifts instead of swaps), motion blur and snow (ImageMagick in the paper), fog (octaves of value
  noise instead of the diamond-square fractal) and elastic transform (one resampling instead of two) are our own.
- Frost is missing: it needs its authors' photographs.

Strengths are the paper's for 224 pixels; lengths (radii, shifts) grow with the shorter side. Random draws depend on
(seed, kind, severity, the sample's key) alone, by numpy's Philox generator.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from mmrep.config.robustness import CORRUPTIONS
from mmrep.evaluation.embedding.embed import Centre
from mmrep.evaluation.tasks.zeroshot import centred

Pixels = Float32[Tensor, "3 rows columns"]
"""Pixels in [0, 1]."""
Random = np.random.Generator


class Corrupted(NamedTuple):
    """The view of a corrupted image at a model's size.

    Attributes:
        centre: the model's evaluation transform.
        kind: one of CORRUPTIONS.
        severity: 1 to 5.
        seed: seed of the random draws.
    """

    centre: Centre
    kind: str
    severity: int
    seed: int = 0

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        counter = [0, sample, self.severity, CORRUPTIONS.index(self.kind)]
        random = np.random.Generator(np.random.Philox(key=[self.seed, 0], counter=counter))
        return corrupt(centred(image, self.centre), self.kind, self.severity, random)


def corrupt(
    image: UInt8[Tensor, "3 rows columns"], kind: str, severity: int, random: Random
) -> UInt8[Tensor, "3 rows columns"]:
    """Return a corrupted copy of an image.

    Args:
        image: pixels at a model's size.
        kind: one of CORRUPTIONS.
        severity: 1 to 5.
        random: the generator of random draws.
    """
    pixels = image.float().div(255).contiguous()
    if kind in _FIXED:
        fixed, strengths = _FIXED[kind]
        corrupted = fixed(pixels, strengths[severity - 1])
    else:
        drawn, strengths = _DRAWN[kind]
        corrupted = drawn(pixels, strengths[severity - 1], random)
    return corrupted.mul(255).round().clamp(0, 255).to(torch.uint8)


def _scale(x: Float32[Tensor, "channels rows columns"]) -> float:
    """Return the ratio of lengths for this size to those for 224 pixels."""
    return min(x.shape[1:]) / 224


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _gaussian_noise(x: Pixels, deviation: float, random: Random) -> Pixels:
    return x + deviation * _tensor(random.standard_normal(tuple(x.shape), dtype=np.float32))


def _shot_noise(x: Pixels, photons: float, random: Random) -> Pixels:
    return _tensor(random.poisson(x.numpy() * photons)) / photons


def _impulse_noise(x: Pixels, amount: float, random: Random) -> Pixels:
    draw = _tensor(random.random(tuple(x.shape), dtype=np.float32))
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, x))


def _defocus_blur(x: Pixels, strength: tuple[float, float]) -> Pixels:
    radius, smoothing = (length * _scale(x) for length in strength)
    reach = math.ceil(radius) + 1
    offsets = torch.arange(-reach, reach + 1).float()
    # Each pixel's share of the disk by its distance from the edge, so that radii need not be whole.
    disk = (radius + 0.5 - torch.hypot(offsets[:, None], offsets)).clamp(0, 1)
    return _gaussian_blur(_convolve(x, disk / disk.sum()), smoothing)


def _glass_blur(x: Pixels, strength: tuple[float, int, int], random: Random) -> Pixels:
    deviation, reach, rounds = strength[0] * _scale(x), strength[1] * _scale(x), strength[2]
    x = _gaussian_blur(x, deviation)
    for _ in range(rounds):
        x = _resample(x, torch.eye(2), shifts=_tensor(random.uniform(-reach, reach, (2, *x.shape[1:]))))
    return _gaussian_blur(x, deviation)


def _motion_blur(x: Pixels, strength: tuple[float, float], random: Random) -> Pixels:
    return _smear(x, strength, random.uniform(-45, 45))


def _smear(x: Tensor, strength: tuple[float, float], degrees: float) -> Tensor:
    """Average shifted copies along a line, weighted by a half Gaussian; borders are repeated."""
    reach, deviation = round(strength[0] * _scale(x)), max(strength[1] * _scale(x), 1e-3)
    angle, (rows, columns) = math.radians(degrees), x.shape[1:]
    total, weights = torch.zeros_like(x), 0.0
    for step in range(2 * reach + 1):
        weight = math.exp(-0.5 * (step / deviation) ** 2)
        down, right = round(step * math.sin(angle)), round(step * math.cos(angle))
        from_row = (torch.arange(rows) - down).clamp(0, rows - 1)
        from_column = (torch.arange(columns) - right).clamp(0, columns - 1)
        total += weight * x.index_select(1, from_row).index_select(2, from_column)
        weights += weight
    return total / weights


def _zoom_blur(x: Pixels, strength: tuple[float, float]) -> Pixels:
    largest, step = strength
    factors = np.arange(1, largest, step)
    zoomed = [_resample(x, torch.eye(2) / float(factor)) for factor in factors]
    return (x + torch.stack(zoomed).sum(0)) / (len(zoomed) + 1)


def _snow(x: Pixels, strength: tuple[float, float, float, float, float, float], random: Random) -> Pixels:
    mean, zoom, threshold, reach, deviation, kept = strength
    size = [max(2, math.ceil(side / (zoom * _scale(x)))) for side in x.shape[1:]]
    flakes = _tensor(random.normal(mean, 0.3, (1, *size))).clamp(0, 1)
    flakes = F.interpolate(flakes[None], size=x.shape[1:], mode="bilinear", align_corners=False)[0]
    flakes = _smear(torch.where(flakes < threshold, 0.0, flakes), (reach, deviation), random.uniform(45, 135))
    grey = (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]) * 1.5 + 0.5
    return kept * x + (1 - kept) * torch.maximum(x, grey) + flakes + flakes.flip(1, 2)


def _fog(x: Pixels, strength: tuple[float, float], random: Random) -> Pixels:
    amount, decay = strength
    cloud = torch.zeros(1, 1, *x.shape[1:])
    for octave in range(1, 9):
        noise = _tensor(random.uniform(-1, 1, (1, 1, 2**octave + 1, 2**octave + 1)))
        cloud += F.interpolate(noise, size=x.shape[1:], mode="bilinear", align_corners=True) / decay**octave
    cloud = (cloud - cloud.min()) / (cloud.max() - cloud.min())
    most = x.max()
    return (x + amount * cloud[0]) * most / (most + amount)


def _brightness(x: Pixels, added: float) -> Pixels:
    """Raise the value of HSV: hue and saturation stay, since all channels grow by one factor."""
    value = x.amax(0, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1e-6), brighter)


def _contrast(x: Pixels, factor: float) -> Pixels:
    mean = x.mean((1, 2), keepdim=True)
    return (x - mean) * factor + mean


def _elastic_transform(x: Pixels, strength: tuple[float, float, float], random: Random) -> Pixels:
    """Apply a random affine map of three points and a smooth random shift of every pixel."""
    side = 244 * _scale(x)  # lengths are shares of the side; the paper's constants are multiples of 244, not of 224
    shift, deviation, affine = (length * side for length in strength)
    shift *= _scale(x)  # blurred noise is stronger in smaller images
    third = min(x.shape[1:]) / 3
    corners = np.array([[third, third], [third, -third], [-third, -third]])
    moved = corners + random.uniform(-affine, affine, (3, 2))
    matrix = np.linalg.solve(np.c_[corners, np.ones(3)], moved).T
    noise = _tensor(random.uniform(-1, 1, (2, *x.shape[1:])))
    return _resample(x, _tensor(matrix[:, :2]), _tensor(matrix[:, 2]), shift * _gaussian_blur(noise, deviation))


def _pixelate(x: Pixels, factor: float) -> Pixels:
    rows, columns = x.shape[1:]
    image = _pillow(x).resize((max(1, int(columns * factor)), max(1, int(rows * factor))), Image.Resampling.BOX)
    return _from_pillow(image.resize((columns, rows), Image.Resampling.BOX))


def _jpeg_compression(x: Pixels, quality: int) -> Pixels:
    buffer = io.BytesIO()
    _pillow(x).save(buffer, "JPEG", quality=quality)
    return _from_pillow(Image.open(buffer))


def _pillow(x: Pixels) -> Image.Image:
    return Image.fromarray(x.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _from_pillow(image: Image.Image) -> Pixels:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(255).contiguous()


def _convolve(x: Tensor, kernel: Float32[Tensor, "height width"]) -> Tensor:
    """Convolve each channel with the kernel; borders are mirrored."""
    reach = [side // 2 for side in kernel.shape]
    padded = _mirrored(_mirrored(x, reach[0], 1), reach[1], 2)
    return F.conv2d(padded[:, None], kernel[None, None])[:, 0]


def _mirrored(x: Tensor, reach: int, dim: int) -> Tensor:
    """Extend both sides by `reach`, mirrored at the outer borders of the edge pixels as often as needed."""
    size = x.shape[dim]
    places = torch.arange(-reach, size + reach) % (2 * size)
    return x.index_select(dim, torch.where(places < size, places, 2 * size - 1 - places))


def _gaussian_blur(x: Tensor, deviation: float) -> Tensor:
    reach = math.ceil(4 * deviation)
    if reach == 0:
        return x
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    line = line / line.sum()
    return _convolve(_convolve(x, line[:, None]), line[None])


def _resample(
    x: Tensor, matrix: Float32[Tensor, "2 2"], offset: Tensor | None = None, shifts: Tensor | None = None
) -> Tensor:
    """Sample at matrix · (row, column) + offset + shift, in pixels from the centre: bilinear, borders mirrored."""
    rows, columns = x.shape[1:]
    half = torch.tensor([(rows - 1) / 2, (columns - 1) / 2])
    down, right = torch.arange(rows) - half[0], torch.arange(columns) - half[1]
    places = torch.stack(torch.meshgrid(down, right, indexing="ij"), 2) @ matrix.T
    places = places + (0 if offset is None else offset) + (0 if shifts is None else shifts.permute(1, 2, 0))
    grid = (places / half.clamp(min=0.5)).flip(2)
    return F.grid_sample(x[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=True)[0]


_FIXED: dict[str, tuple[Callable[[Tensor, Any], Tensor], Sequence[Any]]] = {
    "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "zoom_blur": (_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
}
"""Kinds without random draws, and their strengths by severity."""

_DRAWN: dict[str, tuple[Callable[[Tensor, Any, Random], Tensor], Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "snow": (
        _snow,
        (
            *((0.1, 3, 0.5, 10, 4, 0.8), (0.2, 2, 0.5, 12, 4, 0.7), (0.55, 4, 0.9, 12, 8, 0.7)),
            *((0.55, 4.5, 0.85, 12, 8, 0.65), (0.55, 2.5, 0.85, 12, 12, 0.55)),
        ),
    ),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "elastic_transform": (
        _elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
}
"""Kinds with random draws, and their strengths by severity."""
