"""Pictures of patch weights: heat maps over images, drawn with matplotlib."""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from mmrep.config.checks import require

Pixels = UInt8[Tensor, "3 height width"] | Float[Tensor, "3 height width"]
"""Pixels as they are stored, or normalised as `model.preprocess` returns them."""

_COLOURS = "coolwarm"
_PALE, _STRONG = 0.35, 0.8
"""Opacity of the colours over the grey image: at a weight of zero, and at the limit."""
_INCHES, _DPI = 1.7, 100
TITLE = "Patch weights: what each patch adds to the image embedding (red) or takes away from it (blue)"
NOTHING = "no weight on any patch: this head does not read them"


def heat_map_picture(image: Pixels, weights: Float[Tensor, "rows columns"], limit: float | None = None) -> Image.Image:
    """Draw the weights of an image's patches as colours over a grey copy of it: red adds, blue takes away.

    Args:
        image: its pixels, uint8 or normalised.
        weights: one for each patch. Patches are drawn as rectangles, not smoothed.
        limit: the weight with the strongest colour; None: the largest one here. Use one limit for pictures that are
            compared.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    height, width = image.shape[1:]
    figure = _figure(2 * _INCHES, 2 * _INCHES * height / width)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    _draw_weights(axes, image, weights, float(weights.abs().max()) if limit is None else limit)
    return _rendered(figure)


def weights_sheet(
    images: Sequence[Pixels], rows: Sequence[tuple[str, Float[Tensor, "images rows columns"]]]
) -> Image.Image:
    """Draw images in a row, and below them the patch weights of each head, with a colour bar for each head.

    Each head has a scale of its own: one scale for all would leave heads that spread their weight pale next to a head
    that selects one patch.

    Args:
        images: the pixels of each.
        rows: the name of each head and its weights for all images.

    Raises:
        ConfigError: there are no images, or matplotlib is not installed.
    """
    require(len(images) > 0, "picture of patch weights: no images were given")
    height = _INCHES * images[0].shape[1] / images[0].shape[2]
    figure = _figure(max(4, 1.2 + _INCHES * len(images)), 0.8 + (height + 0.2) * (len(rows) + 1))
    figure.set_layout_engine("constrained")
    figure.suptitle(TITLE, fontsize=10, wrap=True)
    grid = figure.subplots(len(rows) + 1, len(images) + 1, squeeze=False, width_ratios=[1] * len(images) + [0.06])
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    grid[0][0].set_ylabel("image")
    grid[0][-1].set_axis_off()
    for axes, image in zip(grid[0], images, strict=False):
        axes.imshow(_unit(image))
    for (*row, legend), (name, weights) in zip(grid[1:], rows, strict=True):
        limit = float(weights.abs().max())
        for axes, image, each in zip(row, images, weights, strict=True):
            colours = _draw_weights(axes, image, each, limit)
        row[0].set_ylabel(name)
        if limit > 0:
            figure.colorbar(colours, cax=legend, label="weight")
        else:
            row[0].text(0, 1.04, NOTHING, fontsize=9, transform=row[0].transAxes).set_in_layout(False)
            legend.set_axis_off()
    return _rendered(figure)


def _draw_weights(axes: Any, image: Pixels, weights: Float[Tensor, "rows columns"], limit: float) -> Any:
    """Draw an image in grey and its weights over it; return what a colour bar is made for."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    values, grey = weights.double().numpy(), _unit(image) @ np.array([0.299, 0.587, 0.114])
    scale = Normalize(-limit or -1, limit or 1)
    opacity = _PALE + (_STRONG - _PALE) * np.clip(np.abs(values) / (limit or 1), 0, 1)
    extent = (0, grey.shape[1], grey.shape[0], 0)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=extent)
    axes.imshow(values, cmap=_COLOURS, norm=scale, alpha=opacity, extent=extent, interpolation="nearest")
    return ScalarMappable(scale, _COLOURS)


def _unit(image: Pixels) -> Float[np.ndarray, "height width 3"]:
    """Return pixels in [0, 1]. Normalised ones are stretched to it, since their mean and deviation are not known."""
    pixels = image.detach().cpu().float()
    low, high = (pixels.amin(), pixels.amax()) if image.is_floating_point() else (0.0, 255.0)
    return ((pixels - low) / max(float(high - low), 1e-6)).permute(1, 2, 0).numpy()


def _figure(width: float, height: float) -> Any:
    found = importlib.util.find_spec("matplotlib") is not None
    require(found, "pictures need matplotlib: pip install 'mmrep[plots]'")
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=_DPI)


def _rendered(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
