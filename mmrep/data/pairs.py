"""One pair of a batch: its image as pixels, its caption, and the replacement of a sample that can't be used."""

import hashlib
import time
from dataclasses import astuple, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from mmrep.config.caches import cache_root
from mmrep.config.checks import MmrepError
from mmrep.config.data import DataConfig
from mmrep.data.captions import Caption
from mmrep.data.decode import decode_image
from mmrep.data.decoded import DecodedImages, image_sizes
from mmrep.data.draws import Purpose, random_bits, uniforms
from mmrep.data.files import cache_errors, read_arrays, write_arrays
from mmrep.data.order import Order
from mmrep.data.shards import Downloads, image_extension, read_member
from mmrep.data.sources import Sources
from mmrep.data.tar import DataError
from mmrep.data.transforms import CROP_DRAWS, view, view_of_decoded

REPLACEMENTS = 16
"""Number of samples to try in place of one that can't be used."""
_DECODER = f"2, Pillow {PIL.__version__}, simplejpeg {version('simplejpeg')}"
"""Version of the decoder: another one may give other pixels."""
_LEAST_BYTES = 3 * 16 * 16
"""Bytes of a tiny decoded image. If even images of this size exceed the limit, their headers are not read."""


class Bad(NamedTuple):
    """A sample that could not be used.

    Attributes:
        slot: its slot in the order.
        number: its number.
        reason: shard, key, member and what is wrong.
    """

    slot: int
    number: int
    reason: str


@dataclass(frozen=True)
class Seconds:
    """Time that loading took, by part."""

    download: float = 0.0
    read: float = 0.0
    decode: float = 0.0
    text: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Draws(NamedTuple):
    """The random numbers of consecutive slots.

    Attributes:
        captions: (slots, 2) words.
        crops: (slots, CROP_DRAWS) uniform draws.
        flips: (slots,) whether the image is mirrored.
    """

    captions: NDArray[np.uint64]
    crops: NDArray[np.float64]
    flips: NDArray[np.bool_]

    @classmethod
    def of(cls, seed: int, start: int, count: int, flip: float) -> "Draws":
        """Return the draws of slots start, …, start + count - 1."""
        return cls(
            random_bits(seed, Purpose.CAPTION, start, count, 2),
            uniforms(seed, Purpose.CROP, start, count, CROP_DRAWS),
            uniforms(seed, Purpose.FLIP, start, count)[:, 0] < flip,
        )


class Pair(NamedTuple):
    """An image and its caption.

    Attributes:
        number: number of the sample.
        image: the pixels.
        caption: the caption drawn.
        seconds: time that loading took.
        bad: samples that were tried before and could not be used.
    """

    number: int
    image: UInt8[Tensor, "3 rows columns"]
    caption: Caption
    seconds: Seconds
    bad: list[Bad]


class Pairs:
    """Loader of the pairs of slots.

    Args:
        sources: the samples.
        order: the order of the samples.
        config: the transform, and the share of samples that may be skipped.
        decoded: the store of decoded images, if there is one.
    """

    def __init__(self, sources: Sources, order: Order, config: DataConfig, decoded: DecodedImages | None) -> None:
        self.sources = sources
        self.order = order
        self.config = config
        self.decoded = decoded

    def load(self, slot: int, group: int, position: int, draws: Draws, i: int, size: tuple[int, int]) -> Pair:
        """Return the pair of a slot. If its sample can't be used and may be skipped, another one is drawn.

        Args:
            slot: the slot.
            group: the group of sources that it is drawn from.
            position: the sample's position in the group.
            draws: draws of the slots around it.
            i: the slot's position in these.
            size: rows and columns of the image.

        Raises:
            DataError: the sample can't be used, and none may be skipped, or no replacement can be used either.
        """
        start = self.sources.starts[group]
        bad: list[Bad] = []
        candidates = [position]
        while candidates:
            number = start + candidates.pop(0)
            try:
                image, caption, seconds = self._read(number, draws, i, size)
            except DataError as error:
                if not self.config.max_bad_fraction:
                    raise
                bad.append(Bad(slot, number, str(error)))
                if len(bad) == 1:
                    candidates = self.order.replacements(slot, REPLACEMENTS).tolist()
            else:
                return Pair(number, image, caption, seconds, bad)
        raise DataError(f"{bad[0].reason}; nor can any of the {REPLACEMENTS} samples drawn in its place be used")

    def _read(
        self, number: int, draws: Draws, i: int, size: tuple[int, int]
    ) -> tuple[UInt8[Tensor, "3 rows columns"], Caption, Seconds]:
        waited, begin = Downloads.seconds, time.perf_counter()
        sample = self.sources.sample(number)
        caption = sample.captioner.draw(sample.shard, sample.row, draws.captions[i])
        image = None if self.decoded is None else self.decoded.get(number)
        extension = image_extension(sample.shard, sample.row)
        data = b"" if image is not None else read_member(sample.shard, sample.row, extension)
        downloaded, middle = Downloads.seconds - waited, time.perf_counter()
        try:
            pixels = self._view(number, data, image, draws, i, size)
        except MmrepError:
            raise  # an error of the store, for example a full disk: the sample is not at fault
        except ValueError as error:
            raise DataError(f"{sample.shard.sample(sample.row)}, member {extension!r}: {error}") from error
        decode = time.perf_counter() - middle
        return pixels, caption, Seconds(downloaded, middle - begin - downloaded, decode)

    def _view(
        self, number: int, data: bytes, image: Tensor | None, draws: Draws, i: int, size: tuple[int, int]
    ) -> UInt8[Tensor, "3 rows columns"]:
        config = self.config
        how = (config.crop, config.min_scale, size, draws.crops[i], bool(draws.flips[i]))
        if self.decoded is None:
            return view(data, *how, config.max_pixels, config.dct_scaling)
        if image is None:
            image = decode_image(data, config.max_pixels)
            self.decoded.put(number, image)
        return view_of_decoded(image, *how)


def keep_decoded(sources: Sources, config: DataConfig) -> DecodedImages | None:
    """Open the store of the sources' decoded images; return None if they take more than `decoded_gb`."""
    limit = int(config.decoded_gb * 2**30)
    if len(sources) * _LEAST_BYTES > limit:
        return None
    places = [sources.shard(shard) for shard in range(len(sources.catalog))]
    # The digest of an index does not change if bytes are replaced by as many others.
    changed = [place.stat().st_mtime_ns for place in places if isinstance(place, Path)]
    state = [_DECODER, config.max_pixels, sources.digest(), sources.catalog.sizes.tolist(), changed]
    digest = hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()
    place = cache_root() / "decoded" / f"{digest}.sizes.npz"
    known = read_arrays(place.read_bytes()) if place.is_file() else None
    if known is None or not _are_sizes(known, len(sources)):

        def read(number: int) -> bytes:
            sample = sources.sample(number)
            return read_member(sample.shard, sample.row, image_extension(sample.shard, sample.row))

        heights, widths = image_sizes(read, len(sources))
        known = {"heights": heights, "widths": widths}
        with cache_errors(place):
            write_arrays(known, place)
    return DecodedImages.open(place.parent, digest, (known["heights"], known["widths"]), limit)


def _are_sizes(known: dict[str, NDArray], count: int) -> bool:
    fine = [known.get(name, np.empty(0)) for name in ("heights", "widths")]
    return all(array.dtype == np.int32 and array.shape == (count,) and (array >= 0).all() for array in fine)
