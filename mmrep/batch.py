"""The interface between loader and model: `Batch`, and the tokenizer that makes its token ids."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """The pairs of one step on one process. Images are uint8; normalisation happens on the device.

    Attributes:
        images: pixels.
        tokens: token ids, cut to the longest caption of the batch where the text tower allows it.
        lengths: number of tokens of each text, start and end included.
        ids: sample ids, the same in all runs on the same shards.
        groups: numbers that are equal for pairs with equal captions or equal labels.
        captions: number of the caption that was drawn from the sample.
        kept: positions of the kept patches under patch dropout, ascending; None when all are kept.
    """

    images: UInt8[Tensor, "batch 3 rows columns"]
    tokens: Int64[Tensor, "batch length"]
    lengths: Int64[Tensor, " batch"]
    ids: Int64[Tensor, " batch"]
    groups: Int64[Tensor, " batch"]
    captions: Int64[Tensor, " batch"]
    kept: Int64[Tensor, "batch kept"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`. Copies from pinned memory do not block."""
        moved = [None if field is None else field.to(device, non_blocking=True) for field in self]
        return Batch(*moved)  # type: ignore[arg-type]  # only `kept` may be None


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer of a text tower."""

    context_length: int

    def batch(self, texts: list[str]) -> "tuple[Int64[Tensor, 'batch length'], Int64[Tensor, ' batch']]":
        """Return token ids, cut to the longest text where the text tower allows it, and the lengths of the texts."""
        ...

    def digest(self) -> str:
        """Return a digest that changes if any text gets other ids."""
        ...
