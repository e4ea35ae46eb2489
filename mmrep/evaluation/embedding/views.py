"""What is cut out of a decoded image for a model: each view of an image is made once for all models that ask for it."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import UInt8
from torch import Tensor

from mmrep.data.transforms import resize_center_as_pillow


@runtime_checkable
class View(Protocol):
    """From decoded pixels to pixels of one size. Hashable, and can be pickled."""

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        """The view of an image.

        Args:
            image: as decoded.
            sample: a number below 2^63 that is made of the sample's key, so that it is the same in any part of the set;
                anything random is drawn from it.
        """
        ...

    def __hash__(self) -> int: ...


class Centre(NamedTuple):
    """The evaluation transform of CLIP: the image resized until it just covers the size, and its centre.

    The pixels are those of `DualEncoder.preprocess`, bit for bit, where rows and columns are equal.

    Attributes:
        rows: in pixels.
        columns: in pixels.
    """

    rows: int
    columns: int

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        """See `View`."""
        del sample  # nothing is random
        return resize_center_as_pillow(image, (self.rows, self.columns))
