"""What is cut out of a decoded image for a model: each view of an image is made once for all models that ask for it."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from mmrep.pixels import Fit


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


class Centre(Fit):
    """The evaluation transform of a model: the whole image at its size, resized as its config says.

    The pixels are those of `DualEncoder.preprocess`, bit for bit.
    """

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        """See `View`."""
        del sample  # nothing is random
        return torch.from_numpy(self.pixels(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)
