"""The part of labelled samples that is held out to choose hyper-parameters on."""

import numpy as np
from numpy.typing import NDArray


def validation_part(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which samples are held out: of every class the share, rounded, drawn by Philox bits; at least one stays.

    Args:
        labels: of the samples.
        share: of each class.
        seed: of the draw.
    """
    bits = np.random.Philox(key=seed).random_raw(len(labels))
    order = np.lexsort((bits, labels))
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    held = np.zeros(len(labels), bool)
    held[order] = place < np.minimum(np.floor(counts * share + 0.5), counts - 1)[labels[order]]
    return held
