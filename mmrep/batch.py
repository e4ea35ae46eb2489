"""The Batch contract: what a loader gives and a model takes."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """Pairs of one step (of one process). Images are uint8: normalisation happens on the device.

    Attributes:
        images: pixels.
        tokens: token ids, cut to the longest caption of the batch where the tower allows it.
        lengths: tokens of each text, start and end included.
        ids: sample ids, stable over runs on the same shards.
        groups: equal for pairs that match each other too (equal caption or equal label).
        captions: which of a sample's captions was drawn.
        kept: positions of the patches kept under patch dropout, ascending; None when all are.
    """

    images: UInt8[Tensor, "batch 3 rows columns"]
    tokens: Int64[Tensor, "batch length"]
    lengths: Int64[Tensor, " batch"]
    ids: Int64[Tensor, " batch"]
    groups: Int64[Tensor, " batch"]
    captions: Int64[Tensor, " batch"]
    kept: Int64[Tensor, "batch kept"] | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`; copies from pinned memory do not block."""
        moved = [None if field is None else field.to(device, non_blocking=True) for field in self]
        return Batch(*moved)  # type: ignore[arg-type]  # only `kept` may be None


@runtime_checkable
class Tokenizer(Protocol):
    """What turns texts into token ids."""

    context_length: int

    def batch(self, texts: list[str]) -> "tuple[Int64[Tensor, 'batch length'], Int64[Tensor, ' batch']]":
        """Token ids, cut to the longest text where the text tower allows it, and the texts' lengths in tokens."""
        ...

    def digest(self) -> str:
        """Changes where any text would get other ids."""
        ...
