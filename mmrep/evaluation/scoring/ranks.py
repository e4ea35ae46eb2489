"""Exact ranks between images and texts, both ways, from one blocked matrix product in bounded memory.

A block of scores holds some texts and all images. It gives the ranks of its texts at once. The images' ranks are
counted over all blocks, against the scores of their own texts, which a cheap pass computes first; of an image's texts
after the best, only those that may still be within the depth. Where that pass and the blocks differ in a bit, and where
ties leave an order open, the query is scored once more, by itself.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from numpy import ndarray
from torch import Tensor

from mmrep.evaluation.scoring.product import NARROW, product

BLOCK = 2**23
"""Scores held at a time."""
STRIP = 2**20
"""Scores compared at a time by a thread: smaller strips stay in caches but have threads wait for the interpreter."""
MIN_STRIP = 32
"""Rows of scores compared at a time by a thread, at least."""
OWN_PART = 256
"""Texts whose own scores are computed at a time."""
GROUP = 8
"""Rows of scores whose maximum is looked at before themselves."""
LANES = 255
"""Flags that a byte can count."""
NONE = np.iinfo(np.int32).max
"""The rank of an item that there is not."""

Scores = Float[ndarray, "rows columns"]
_Further = tuple[Int64[ndarray, " some"], Int32[ndarray, "further 2 some"]]


class Ranks(NamedTuple):
    """Where the own items of each query stand in the gallery, 1 = nearest, best first; NONE where there are no more.

    Beyond the best own item, ranks are exact as far as the deepest k of `hits`.

    Attributes:
        place: ties in the order of the gallery.
        worst: others that tie with own items before them.
        hits: whether torch.topk(k) finds an own item, for each k asked for.
    """

    place: Int32[ndarray, "queries own"]
    worst: Int32[ndarray, "queries own"]
    hits: Bool[ndarray, "queries depths"]


class _Way(NamedTuple):
    """One of the two directions. The own items of query q are `items[starts[q] : starts[q + 1]]`, rising."""

    queries: Float[Tensor, "queries embed"]
    gallery: Float[Tensor, "gallery embed"]
    items: Int64[ndarray, " items"]
    starts: Int64[ndarray, " bounds"]

    def own(self, rows: Int64[ndarray, " rows"]) -> Int64[ndarray, "rows most"]:
        """The own items of some queries; −1 where there are no more."""
        counts = self.starts[rows + 1] - self.starts[rows]
        nth = np.arange(counts.max())
        found = self.items[np.minimum(self.starts[rows, None] + nth, len(self.items) - 1)]
        return np.where(nth < counts[:, None], found, -1)


@torch.inference_mode()
def two_way_ranks(
    images: Float[Tensor, "images embed"], texts: Float[Tensor, "texts embed"], image_of_text: Int64[Tensor, " texts"],
    depths: tuple[int, ...],
) -> tuple[Ranks, Ranks]:  # fmt: skip
    """For each text the rank of its image; for each image the ranks of its best texts, as many as the largest depth.

    Scores are made on the images' device, in fp32 or better, and counted on the CPU.

    Args:
        images: finite embeddings.
        texts: finite embeddings; may lie in a mapped file.
        image_of_text: the image that each text belongs to; every image has one.
        depths: the k of `Ranks.hits`.
    """
    owner = image_of_text.cpu().numpy()
    grouped = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[grouped], np.arange(len(images) + 1))
    expected = _own_scores(images, texts, owner, grouped)
    limits = _best_own(expected, owner, starts, max(depths))
    by_text, by_image = np.empty((2, len(texts)), np.int32), np.empty((2, *limits.shape), np.int32)
    for nth, limit in enumerate(limits):
        for count, own_too in zip(by_image[:, nth], (expected > limit[owner], expected >= limit[owner]), strict=True):
            count[:] = -np.bincount(owner[own_too], minlength=len(images))
    doubtful = np.zeros(len(images), bool)
    slices = list(_slices(len(texts), BLOCK // len(images)))
    space = images.new_empty((max(part.stop - part.start for part in slices), len(images)), dtype=_wide(images))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for rows in slices:
            scores = _product(texts[rows], images, space)
            own = scores[np.arange(len(scores)), owner[rows]]
            doubtful[owner[rows][own != expected[rows]]] = True
            strips = list(_slices(len(scores), min(LANES, max(MIN_STRIP, STRIP // len(images)))))
            count = partial(_count, limits, _lowest_open(limits, by_image, max(depths)))
            work = [(scores[strip], own[strip]) for strip in strips]
            for strip, (row, best, (columns, further)) in zip(strips, pool.map(count, work), strict=True):
                by_text[:, rows.start + strip.start : rows.start + strip.stop] = row
                by_image[:, 0] += best
                for nth, parts in enumerate(further, 1):
                    for total, part in zip(by_image[:, nth], parts, strict=True):
                        np.add.at(total, columns, part)
    by_text[1] -= 1
    to_image = _Way(texts, images, owner, np.arange(len(texts) + 1))
    to_text = _Way(images, texts, grouped, starts)
    none_missing = np.zeros((len(texts), 1), bool)
    return (
        _settled(by_text[:, :, None], none_missing, to_image, np.zeros(len(texts), bool), depths),
        _settled(by_image.transpose(0, 2, 1), np.isinf(limits.T), to_text, doubtful, depths),
    )


def _slices(count: int, size: int) -> Iterator[slice]:
    """Slices of nearly equal sizes, at most `size` (at least 1)."""
    parts = -(-count // max(1, size))
    bounds = [count * part // parts for part in range(parts + 1)] if parts else [0]
    yield from map(slice, bounds[:-1], bounds[1:])


def _wide(embeddings: Tensor) -> torch.dtype:
    return torch.promote_types(embeddings.dtype, torch.float32)


def _product(
    rows: Float[Tensor, "rows embed"], columns: Float[Tensor, "columns embed"], space: Tensor | None = None
) -> Scores:
    """Their scores, made where the columns are; see `product`."""
    wide = _wide(columns)
    return product(rows.to(columns.device, wide), columns.to(wide), space).cpu().numpy()


def _own_scores(
    images: Float[Tensor, "images embed"], texts: Float[Tensor, "texts embed"],
    owner: Int64[ndarray, " texts"], grouped: Int64[ndarray, " texts"],
) -> Float[ndarray, " texts"]:  # fmt: skip
    """The score of each text with its image: products of few texts with the few images in a row that own them."""
    parts = []
    for part in _slices(len(texts), OWN_PART):
        wanted = owner[grouped[part]]
        low = max(0, min(int(wanted[0]), len(images) - NARROW))
        near = images[low : max(int(wanted[-1]) + 1, low + NARROW)]
        parts.append(_product(texts[torch.from_numpy(grouped[part])], near)[np.arange(len(wanted)), wanted - low])
    found = np.concatenate(parts)
    scores = np.empty_like(found)
    scores[grouped] = found
    return scores


def _best_own(
    scores: Float[ndarray, " texts"], owner: Int64[ndarray, " texts"], starts: Int64[ndarray, " bounds"], most: int
) -> Float[ndarray, "own images"]:
    """The best scores of each image's own texts, best first; infinity where there are no more."""
    best_first = np.lexsort((-scores, owner))
    nth = np.arange(min(most, int(np.diff(starts).max())))[:, None]
    place = starts[:-1] + nth
    found = scores[best_first[np.minimum(place, len(scores) - 1)]]
    return np.where(place < starts[1:], found, np.inf).astype(scores.dtype)


def _lowest_open(
    limits: Float[ndarray, "own images"], others: Int32[ndarray, "2 own images"], depth: int
) -> Float[ndarray, " images"]:
    """The lowest limit after the first whose rank may still be within the depth; infinity where there is none.

    Counts so far, with all own texts taken off at the start, only rise.
    """
    nth = np.arange(1, len(limits))[:, None]
    settled = nth + 1 + others[:, 1:].min(0) > depth
    return np.where(settled, np.inf, limits[1:]).min(0, initial=np.inf).astype(limits.dtype)


def _count(
    limits: Float[ndarray, "own columns"], low: Float[ndarray, " columns"],
    work: tuple[Scores, Float[ndarray, " rows"]],
) -> tuple[Int32[ndarray, "2 rows"], Int32[ndarray, "2 columns"], _Further]:  # fmt: skip
    """How many scores of each row and each column are above, and how many not below, the row's and the first limit.

    For the further limits see `_count_further`.
    """
    scores, rows = work
    width = scores.shape[1]
    flags = _flags(*scores.shape)
    by_row, by_column = np.empty((2, len(rows)), np.int32), np.empty((2, width), np.int32)
    for nth, compare in enumerate((np.greater, np.greater_equal)):
        compare(scores, rows[:, None], out=flags[:, :width])
        by_row[nth] = _in_rows(flags)
        compare(scores, limits[0], out=flags[:, :width])
        by_column[nth] = flags.view(np.int64).sum(0).view(np.uint8)[:width]
    return by_row, by_column, _count_further(scores, limits[1:], low)


def _count_further(scores: Scores, limits: Float[ndarray, "own columns"], low: Float[ndarray, " columns"]) -> _Further:
    """Columns, in which some score may reach `low`, and how many there are above, then not below, each limit.

    A column can be there several times: its counts add up.
    """
    whole = len(scores) // GROUP * GROUP
    maxima = scores[:whole].reshape(-1, GROUP, len(low)).max(1), scores[whole:].max(0, initial=-np.inf)[None]
    group, column = np.divmod(np.flatnonzero(np.concatenate([each >= low for each in maxima])), len(low))
    row = group * GROUP + np.arange(GROUP)[:, None]
    near = np.where(row < len(scores), scores[np.minimum(row, len(scores) - 1), column], -np.inf)
    limit = limits[:, None, column]
    further = [compare(near, limit).sum(1, dtype=np.int32) for compare in (np.greater, np.greater_equal)]
    return column, np.stack(further, 1)


def _flags(rows: int, columns: int) -> Bool[ndarray, "rows padded"]:
    """For as many flags, and false ones up to a width that can be counted eight lanes at a time."""
    flags = np.empty((rows, -(-columns // (8 * LANES)) * 8 * LANES), bool)
    flags[:, columns:] = False
    return flags


def _in_rows(flags: Bool[ndarray, "rows padded"]) -> Int64[ndarray, " rows"]:
    """How many are true in each row: numpy adds up eight bytes at a time faster than it counts flags."""
    lanes = flags.view(np.int64).reshape(len(flags), -1, LANES).sum(2)
    return lanes.view(np.uint8).sum(1, dtype=np.int64)


def _settled(
    others: Int32[ndarray, "2 queries own"], missing: Bool[ndarray, "queries own"], way: _Way,
    doubtful: Bool[ndarray, " queries"], depths: tuple[int, ...],
) -> Ranks:  # fmt: skip
    """Ranks from how many others are above, and not below, each own item; unclear ones from scores of their own."""
    before = np.arange(1, others.shape[2] + 1, dtype=np.int32)
    place, worst = (np.where(missing, NONE, before + count) for count in others)
    found = Ranks(place, worst, place[:, :1] <= np.array(depths))
    unclear = (worst > place) & (place <= max(depths))
    rows = np.flatnonzero(unclear.any(1) | (worst[:, 0] > place[:, 0]) | doubtful)
    for part in _slices(len(rows), BLOCK // len(way.gallery)):
        again = _rescored(way, rows[part], depths)
        for values, new in zip(found, again, strict=True):
            values[rows[part]] = NONE
            values[rows[part], : new.shape[1]] = new
    return found


def _rescored(way: _Way, rows: Int64[ndarray, " rows"], depths: tuple[int, ...]) -> Ranks:
    """The ranks of a few queries from all their scores."""
    scores = _product(way.queries[torch.from_numpy(rows)], way.gallery)
    items, nth = way.own(rows), np.arange(len(rows))[:, None]
    own = np.where(items >= 0, scores[nth, items], -np.inf).astype(scores.dtype)
    best = np.argsort(-own, axis=1, kind="stable")[:, : max(depths)]
    flags, columns = _flags(*scores.shape), np.arange(scores.shape[1], dtype=np.int32)
    place, worst = np.full((2, *best.shape), NONE, np.int32)
    for each in range(best.shape[1]):
        item, limit = items[nth, best[:, each : each + 1]], own[nth, best[:, each : each + 1]]
        numbers = []
        for compare in (np.greater, np.greater_equal, np.equal):
            compare(scores, limit, out=flags[:, : len(columns)])
            if compare is np.equal:
                flags[:, : len(columns)] &= columns < item
            numbers.append(_in_rows(flags))
        above, reached, earlier = numbers
        there = item[:, 0] >= 0
        place[there, each] = (1 + above + earlier)[there]
        worst[there, each] = (1 + each + reached - (own >= limit).sum(1))[there]
    hits = []
    for depth in depths:
        nearest = torch.from_numpy(scores).topk(min(depth, len(columns)), dim=1).indices.numpy()
        hits.append((nearest[:, :, None] == items[:, None]).any((1, 2)))
    return Ranks(place, worst, np.stack(hits, 1))
