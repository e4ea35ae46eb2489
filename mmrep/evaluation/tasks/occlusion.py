"""Accuracy with random patches covered, of the model's own grid, in the manner of PatchDrop (Naseer et al., arXiv
2105.10497, section 3.1).

A covered patch has the colour that normalisation turns into zero. The choice of patches depends on the seed, the
sample's key and the size of the grid alone; those of a smaller share are among those of a larger one.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.embed import Centre, View, centre_of
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.tasks.zeroshot import Predictions, centred, check_classes, predict
from mmrep.model.dual_encoder import DualEncoder


class Occluded(NamedTuple):
    """The view of an image at a model's size with some of its patches covered.

    Attributes:
        centre: the model's evaluation transform.
        grid: rows and columns of patches. Pixels left over at the border are never covered.
        share: share of the patches that are covered, rounded to whole patches.
        colour: red, green and blue of covered patches.
        seed: seed of the choice of patches.
    """

    centre: Centre
    grid: tuple[int, int]
    share: float
    colour: tuple[int, int, int]
    seed: int = 0

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        pixels = centred(image, self.centre)
        sizes = (self.centre.rows // self.grid[0], self.centre.columns // self.grid[1])
        covered = torch.zeros(pixels.shape[1:], dtype=torch.bool)
        patches = torch.from_numpy(covered_patches(self.grid, self.share, self.seed, sample))
        grown = patches.repeat_interleave(sizes[0], 0).repeat_interleave(sizes[1], 1)
        covered[: grown.shape[0], : grown.shape[1]] = grown
        return torch.where(covered, torch.tensor(self.colour, dtype=torch.uint8)[:, None, None], pixels)


def covered_patches(grid: tuple[int, int], share: float, seed: int, sample: int) -> Bool[ndarray, "rows columns"]:
    """Return which patches of a sample are covered: the first round(share · patches) of a random order."""
    count = grid[0] * grid[1]
    bits = np.random.Philox(key=[seed, 1], counter=[0, sample, 0, 0]).random_raw(count)
    covered = np.zeros(count, dtype=bool)
    covered[np.argsort(bits, kind="stable")[: round(share * count)]] = True
    return covered.reshape(grid)


def occlusion(context: Context) -> list[Evaluation]:
    """Return the zero-shot accuracy of every model with each share of `config.occlusion` covered, and with none.

    Raises:
        ConfigError: a set without classes.
        DataError: an image that can't be read.
        MmrepError: scores that are not finite.
    """
    check_classes(context, "occlusion")
    shares = context.config.occlusion.shares
    views: dict[str, list[View]] = {
        name: [centre_of(model), *(_view(model, share, context.config.occlusion.seed) for share in shares)]
        for name, model in context.models.items()
    }
    labels = np.asarray(context.labels)
    classes = len(context.evalset.classnames)
    return [occlusion_metrics(found, labels, classes, shares) for found in predict(context, views)]


def occlusion_metrics(
    predictions: Predictions, labels: Int64[ndarray, " images"], classes: int, shares: tuple[float, ...]
) -> Evaluation:
    """Return occlusion_acc1@SHARE: acc1 with this share of the patches covered.

    Args:
        predictions: for the clean view, then for every share.
        labels: the class of each image.
        classes: number of classes.
        shares: shares of covered patches.
    """
    right = predictions.classes == labels[:, None]
    names = [f"occlusion_acc1@{share:g}" for share in shares]
    clean, *metrics = right.mean(0).tolist()
    worst_clean, *worst = (right & ~predictions.tied).mean(0).tolist()
    return Evaluation(
        dict(zip(names, metrics, strict=True)),
        dict.fromkeys(names, 1 / classes),
        {
            "label": labels,
            "clean_right": right[:, 0],
            "right": right[:, 1:],
            "tied": predictions.tied,
            "shares": np.array(shares),
        },
        {"occlusion_clean_acc1": clean},
        {**dict(zip(names, worst, strict=True)), "occlusion_clean_acc1": worst_clean},
    )


def _view(model: DualEncoder, share: float, seed: int) -> Occluded:
    red, green, blue = (round(255 * mean) for mean in model.preprocess.mean)
    return Occluded(centre_of(model), model.image.grid, share, (red, green, blue), seed)
