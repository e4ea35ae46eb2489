"""How far a difference between arms depends on the test images: outcomes of single images, and intervals from them.

An interval over seeds is about new seeds and the same test images. Where one head is better at some images and worse at
others, that is less than a reader expects: with 20 seeds and 500 images, it excluded a true difference of zero in 36%
of simulated studies whose images were drawn anew. `crossed` is about new seeds and new images, `bootstrap` about the
same checkpoints and new images.
"""

import io
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmrep.evaluation.outcome_names import model_folder
from mmrep.study.statistics import Interval, NewImages, least_error

LOG = logging.getLogger("mmrep")

RESAMPLES = 2000
_CELLS = 2**22
"""Numbers that the bootstrap draws at a time."""
_TASKS = {
    "acc1": "zeroshot",
    "acc5": "zeroshot",
    "lp_acc1": "linear_probe",
    "lp_acc5": "linear_probe",
    "knn_acc1": "knn",
    "image_retrieval_recall": "retrieval",
    "text_retrieval_recall": "retrieval",
    "reranked_image_retrieval_recall": "rerank",
}
"""The metrics that are means over images, each without its @k, and the tasks that measure them."""


class Outcomes(NamedTuple):
    """The outcome of every image of a set in one run.

    Attributes:
        keys: digest of the images' keys. Outcomes with equal digests are about the same images in the same order.
        values: what each image contributes; the metric is the mean.
    """

    keys: str
    values: NDArray[np.float64]


class RunOutcomes:
    """The outcomes of a study's runs, read from their folders. Files that can't be read are named in one warning each.

    Args:
        folders: the folder of each run, by arm and seed.
    """

    def __init__(self, folders: Mapping[tuple[str, int], Path]) -> None:
        self._folders = folders
        self._damaged: set[Path] = set()

    def __call__(self, pool: str, seed: int, metric: str) -> Outcomes | None:
        """Return the outcomes of a run in `SET/METRIC`; None where the metric is no mean, or the file can't be read."""
        evalset, _, name = metric.rpartition("/")
        task = _TASKS.get(name.partition("@")[0])
        if task is None or (pool, seed) not in self._folders:
            return None
        folder = self._folders[pool, seed]
        place = folder / "outcomes" / model_folder(folder.name)
        # A set's file has the task's name unless it is the set's own task.
        path = next((p for p in [place / f"{evalset}.{task}.npz"] if p.is_file()), place / f"{evalset}.npz")
        if path in self._damaged:
            return None
        try:
            return read_outcomes(path, name)
        except (OSError, EOFError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            self._damaged.add(path)
            LOG.warning("%s: %s; no uncertainty over images is estimated with it", path, error)
            return None


def read_outcomes(path: Path, name: str) -> Outcomes:
    """Return the outcomes of a file that an evaluation wrote.

    Args:
        path: the npz file of a set.
        name: a metric of it that is a mean over images, without the set's name.

    Raises:
        OSError, EOFError, LookupError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error: the file is missing
            or damaged, or holds no outcomes of this metric.
    """
    with zipfile.ZipFile(path) as archive:

        def array(member: str) -> NDArray:
            return np.load(io.BytesIO(archive.read(f"{member}.npy")))  # np.load(path) parses before it checks the CRC

        keys = array("keys")
        values = _outcomes(array, name, len(keys))
    if values.shape != keys.shape or not len(keys):
        raise ValueError(f"expected an outcome for each of {len(keys)} keys, found {values.shape}")
    order = np.argsort(keys, kind="stable")
    digest = blake2b("\n".join(keys[order].tolist()).encode(), digest_size=16).hexdigest()
    return Outcomes(digest, values[order])


def _outcomes(array: Callable[[str], NDArray], name: str, images: int) -> NDArray[np.float64]:
    """Return what each image contributes to a metric."""
    kind, _, k = name.partition("@")
    if kind.endswith(("acc1", "acc5")):
        found = array(f"predicted@{k}") == array("label") if k else array("position") <= int(kind[-1])
        return found.astype(np.float64)
    if kind == "reranked_image_retrieval_recall":
        return _by_image(array("reranked_image_position") <= int(k), array("image_of_text"), images)
    from mmrep.evaluation.scoring.ranking import RECALL_AT  # imports torch

    hits = array(f"{kind.partition('_')[0]}_hits")[:, RECALL_AT.index(int(k))]
    return hits.astype(np.float64) if kind.startswith("text") else _by_image(hits, array("image_of_text"), images)


def _by_image(hits: NDArray, image_of_text: NDArray, images: int) -> NDArray[np.float64]:
    """Return the outcomes of texts as one outcome for each image, since an image is drawn with all its texts.

    The metric m is a mean over texts. An image of c texts with h hits has m + (h − c m) · images / texts. Their mean
    is m, and their spread that of a ratio of two means (Cochran, Sampling Techniques, 3rd ed., sec. 6.4).
    """
    if len(hits) != len(image_of_text) or not len(hits):
        raise ValueError(f"expected a text's image for each of {len(hits)} texts, found {len(image_of_text)}")
    texts = np.bincount(image_of_text, minlength=images)
    share = hits.mean()
    return share + (np.bincount(image_of_text, hits, images) - texts * share) * images / len(hits)


def crossed(a: NDArray, b: NDArray, confidence: float) -> NewImages:
    """Return the uncertainty of a mean difference over new seeds and new images.

    The differences of S seeds × I images are an overall mean, an effect of the seed, an effect of the image and a rest,
    all random (two-way analysis of variance without replication: Searle, Casella & McCulloch, Variance Components,
    1992, ch. 4). With the mean squares M, Var(mean) = (M_seed + M_image − M_both) / (S I), whose degrees of freedom are
    Satterthwaite's (Biometrics Bulletin 2, 1946): (M_seed + M_image − M_both)² / Σ M² / df.

    A component that comes out negative counts as zero, so that the standard error is never less than that over seeds
    alone or over images alone. Nor is the interval narrower or p smaller than theirs: few seeds have so few degrees of
    freedom that they could be, and a claim about more would then be easier than one about less. In simulations the
    level holds, but for five seeds that vary three times as much as images: 5.6% false claims instead of 5%.

    Args:
        a: outcomes of an arm, seeds × images.
        b: outcomes of the other arm.
        confidence: level of the interval.
    """
    from scipy.special import stdtr, stdtrit

    values = np.subtract(a, b, dtype=np.float64)
    seeds, images = values.shape
    mean, rows, columns = values.mean(), values.mean(1), values.mean(0)
    df = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)], dtype=np.float64)
    rest = values - rows[:, None] - columns + mean
    squares = [images * np.square(rows - mean).sum(), seeds * np.square(columns - mean).sum(), np.square(rest).sum()]
    seed, image, both = squares / df
    total = max(seed + image - both, seed, image)
    least = least_error(1 / images)
    total_df = total**2 / (np.array([seed, image, both]) ** 2 / df).sum() if total > 0 else df[0]
    freedom = np.array([total_df, df[0], df[1]])
    errors = np.maximum(np.sqrt(np.array([total, seed, image]) / (seeds * images)), least)
    reach = float((-stdtrit(freedom, (1 - confidence) / 2) * errors).max())
    p = float((2 * stdtr(freedom, -abs(mean) / errors)).max())
    parts = np.array([max(seed - both, 0), max(image - both, 0), both])
    shares = (parts / parts.sum() if parts.sum() > 0 else parts).tolist()
    return {
        "low": float(mean) - reach,
        "high": float(mean) + reach,
        "p": p,
        "df": float(total_df),
        "se": float(errors[0]),
        "parts": {"seeds": shares[0], "images": shares[1], "both": shares[2]},
    }


def bootstrap(a: NDArray, b: NDArray, confidence: float, seed: int = 0) -> Interval:
    """Return the percentile interval of a mean difference over new images, with the checkpoints as they are.

    Images are drawn with replacement RESAMPLES times (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch.
    13). Images of equal mean differences over seeds are drawn as one group by their number, which is the same draw.

    Args:
        a: outcomes of an arm, seeds × images.
        b: outcomes of the other arm.
        confidence: level of the interval.
        seed: seed of the draws.
    """
    sums = np.subtract(a, b, dtype=np.float64).sum(0).round(9)
    values, counts = np.unique(sums, return_counts=True)
    images, random = len(sums), np.random.default_rng(seed)
    chunk = max(1, _CELLS // len(values))
    means = np.concatenate(
        [
            random.multinomial(images, counts / images, min(chunk, RESAMPLES - start)) @ values
            for start in range(0, RESAMPLES, chunk)
        ]
    ) / (images * len(a))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"low": float(low), "high": float(high)}


def usable(found: Outcomes | None, value: float, where: str) -> Outcomes | None:
    """Return outcomes whose mean is the metric's value; warn of others and return None."""
    if found is not None and not math.isclose(found.values.mean(), value, rel_tol=0, abs_tol=1e-6):
        LOG.warning(
            "%s: the outcomes' mean is %.6f, the metric %.6f; no uncertainty over images is estimated with them",
            where, found.values.mean(), value,
        )  # fmt: skip
        return None
    return found
