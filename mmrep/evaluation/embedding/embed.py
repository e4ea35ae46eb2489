"""Embeddings of images and texts: every image decoded once for all models and views, every text encoded once.

Batches go round the processes in turn, whole. So each has the same samples whatever the number of processes, and so
have the embeddings the same bits, where the hardware is the same.
"""

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmrep import distributed
from mmrep.config.evaluation import EvaluationConfig
from mmrep.data.captions import group_id
from mmrep.data.loader import default_workers
from mmrep.data.tar import DataError
from mmrep.evaluation.embedding.views import Centre, View
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder

Views = Mapping[Hashable, Tensor]
"""Of a batch of images: (batch, 3, rows, columns) uint8 pixels under each view."""


class _Images(Dataset[dict[View, Tensor] | DataError]):
    def __init__(self, records: Records, views: Sequence[View]) -> None:
        self.records = records
        self.views = views

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> dict[View, Tensor] | DataError:
        try:
            image = self.records.image(position)
        except DataError as error:
            return error
        sample = group_id(self.records.key(position))
        return {view: view(image, sample) for view in self.views}


def _collate(items: list[dict[View, Tensor] | DataError]) -> Views | DataError:
    """A batch stacked under every view: from a worker each tensor comes through a file descriptor."""
    for item in items:
        if isinstance(item, DataError):
            return item
    good = [item for item in items if not isinstance(item, DataError)]
    return {view: torch.stack([item[view] for item in good]) for view in good[0]}


def centre_of(model: DualEncoder) -> Centre:
    """Return the view that a model is evaluated on."""
    return Centre(*model.image.fit)


def embed_set(
    models: Sequence[DualEncoder], records: Records, config: EvaluationConfig, name: str = "", quiet: bool = True
) -> list[Float[Tensor, "images embed"]]:
    """The image embeddings of a set under every model, of unit length, on the CPU.

    Args:
        models: in evaluation mode, on one device.
        records: the images.
        config: batch size and workers.
        name: of the set, for the progress bar.
        quiet: show no progress bar.

    Raises:
        DataError: an image that can't be read.
    """

    def encode(views: Views) -> list[Tensor]:
        return [model.encode_image(views[centre_of(model)].to(model.device)) for model in models]

    return embed_images(encode, sorted({centre_of(model) for model in models}), records, config, name, quiet)


@torch.inference_mode()
def embed_images(
    encode: Callable[[Views], list[Tensor]],
    views: Sequence[View],
    records: Records,
    config: EvaluationConfig,
    name: str = "",
    quiet: bool = True,
) -> list[Float[Tensor, "images embed"]]:
    """The image embeddings of a set under whatever makes several of each batch.

    Args:
        encode: a batch of uint8 images on the CPU, under every view, to embeddings: each time as many tensors, one for
            each entry of the result. Every process calls it equally often, as FSDP2 wants.
        views: which `encode` reads.
        records: the images.
        config: batch size and workers.
        name: of the set, for the progress bar.
        quiet: show no progress bar.

    Returns:
        On the CPU, in the order of the records, on every process.

    Raises:
        DataError: an image that can't be read, by any process.
    """
    batches = _batches(len(records), config.batch_size)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = default_workers(here) if config.workers is None else config.workers
    own = [list(batch) for batch in _own(batches)]
    loader: DataLoader[Any] = DataLoader(
        _Images(records, views),
        batch_sampler=own,
        num_workers=workers,
        collate_fn=_collate,
        # Else a seed for the workers is drawn from torch's own, which training's dropout goes by.
        generator=torch.Generator(),
    )
    parts: list[list[Tensor]] = []
    for pixels in tqdm(loader, desc=name, total=len(own), unit="batch", disable=quiet, leave=False):
        error = distributed.first_text(str(pixels) if isinstance(pixels, DataError) else "")
        if error or isinstance(pixels, DataError):
            raise DataError(error)
        parts.append([embeddings.cpu() for embeddings in encode(pixels)])
    return [_gathered(list(each), batches) for each in zip(*parts, strict=True)]


@torch.inference_mode()
def embed_texts(model: DualEncoder, texts: Sequence[str], batch_size: int) -> Float[Tensor, "texts embed"]:
    """Text embeddings of unit length on the CPU, in the order given, on every process.

    Texts are sorted by length in tokens, and batches cut to their longest; texts of the same tokens are encoded once.
    """
    rows = [tuple(model.tokenizer.encode(text)) for text in texts]
    unique = sorted(set(rows), key=lambda row: (len(row), row))
    batches = _batches(len(unique), batch_size)
    parts = []
    for batch in _own(batches):
        tokens = model.tokenizer.stack(unique[batch.start : batch.stop], multiple=1)
        parts.append(model.encode_text(tokens.to(model.device)).cpu())
    places = {row: place for place, row in enumerate(unique)}
    return _gathered(parts, batches)[[places[row] for row in rows]]


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _own(batches: Sequence[range]) -> list[range]:
    """This process's batches: every world-size-th, and where others have one more, the first batch once more."""
    own = list(batches[distributed.rank() :: distributed.world_size()])
    rounds = math.ceil(len(batches) / distributed.world_size())
    return own + [batches[0]] * (rounds - len(own))


def _gathered(parts: Sequence[Tensor], batches: Sequence[range]) -> Tensor:
    """The rows of all batches in their order, from what each process made of its own."""
    if distributed.world_size() == 1:
        return torch.cat(list(parts))
    world = distributed.world_size()
    by_rank = []
    for rank, rows in enumerate(distributed.gather_rows(torch.cat(list(parts)))):
        sizes = [len(batch) for batch in batches[rank::world]]
        by_rank.append(iter(rows[: sum(sizes)].split(sizes)))
    return torch.cat([next(by_rank[i % world]) for i in range(len(batches))])
