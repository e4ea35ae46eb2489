"""Embeddings of images and texts: every image is decoded once for all models and views, every text encoded once.

Whole batches go to the processes in turn. So a batch has the same samples whatever the number of processes, and the
embeddings have the same bits where the hardware is the same.
"""

import logging
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmrep import distributed
from mmrep.config.evaluation import EvaluationConfig
from mmrep.data.captions import group_id
from mmrep.data.loader import default_workers
from mmrep.data.tar import DataError
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.text_encoder import ClipTokenizer
from mmrep.pixels import Fit

LOG = logging.getLogger("mmrep")

Views = Mapping[Hashable, Tensor]
"""A batch of images under each view: (batch, 3, rows, columns) uint8 pixels."""

_ANY_LENGTH = 1_000_000
_ENDS = 2
"""Tokens that mark start and end."""


@runtime_checkable
class View(Protocol):
    """A function from decoded pixels to pixels of one size. It must be hashable and picklable."""

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        """Return the view of an image.

        Args:
            image: decoded pixels.
            sample: a number below 2^63 that depends on the sample's key alone, so that it is the same in any part of
                the set. Anything random is drawn from it.
        """
        ...

    def __hash__(self) -> int: ...


class Centre(Fit):
    """The evaluation transform of a model: the image at the model's size, resized as its config says.

    The pixels are those of `DualEncoder.preprocess`, bit for bit.
    """

    def __call__(self, image: UInt8[Tensor, "3 height width"], sample: int) -> UInt8[Tensor, "3 rows columns"]:
        del sample  # nothing is random
        return torch.from_numpy(self.pixels(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)


def centre_of(model: DualEncoder) -> Centre:
    """Return the view that a model is evaluated on."""
    return Centre(*model.image.fit)


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
    """Stack a batch under every view: each tensor that a worker sends costs a file descriptor."""
    error = next((item for item in items if isinstance(item, DataError)), None)
    good = [item for item in items if not isinstance(item, DataError)]
    return error or {view: torch.stack([item[view] for item in good]) for view in good[0]}


def embed_set(
    models: Sequence[DualEncoder], records: Records, config: EvaluationConfig, name: str = "", quiet: bool = True
) -> list[Float[Tensor, "images embed"]]:
    """Return the image embeddings of a set under every model, of unit length, on the CPU.

    Args:
        models: in evaluation mode, on one device.
        records: the images.
        config: batch size and workers.
        name: the set's name, for the progress bar.
        quiet: show no progress bar.

    Raises:
        DataError: an image that can't be read.
    """

    def encode(views: Views) -> list[Tensor]:
        # Models that share a trunk recognise a batch that they have seen by the tensor itself.
        moved = {view: pixels.to(models[0].device) for view, pixels in views.items()}
        return [model.encode_image(moved[centre_of(model)]) for model in models]

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
    """Return what `encode` computes of all images: on the CPU, in the order of the records, on every process.

    Args:
        encode: takes a batch of uint8 images on the CPU under every view, and returns one tensor for each entry of the
            result. Every process calls it equally often, since FSDP2 needs that.
        views: the views that `encode` reads.
        records: the images.
        config: batch size and workers.
        name: the set's name, for the progress bar.
        quiet: show no progress bar.

    Raises:
        DataError: an image that can't be read, by any process.
    """
    batches = _batches(len(records), config.batch_size)
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    own = [list(batch) for batch in _own(batches)]
    loader: DataLoader[Any] = DataLoader(
        _Images(records, views),
        batch_sampler=own,
        num_workers=default_workers(processes_here) if config.workers is None else config.workers,
        collate_fn=_collate,
        # Otherwise the workers' seed is drawn from torch's global state, which training's dropout depends on.
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
    """Return text embeddings of unit length on the CPU, in the order given, on every process.

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
    """Return every world-size-th batch; a process with one fewer than others repeats the first batch."""
    own = list(batches[distributed.rank() :: distributed.world_size()])
    rounds = math.ceil(len(batches) / distributed.world_size())
    return own + [batches[0]] * (rounds - len(own))


def _gathered(parts: Sequence[Tensor], batches: Sequence[range]) -> Tensor:
    """Return the rows of all batches in their order, from the batches that each process computed."""
    world = distributed.world_size()
    if world == 1:
        return torch.cat(list(parts))
    by_rank = []
    for rank, rows in enumerate(distributed.gather_rows(torch.cat(list(parts)))):
        sizes = [len(batch) for batch in batches[rank::world]]
        by_rank.append(iter(rows[: sum(sizes)].split(sizes)))
    return torch.cat([next(by_rank[i % world]) for i in range(len(batches))])


def warn_of_cut(texts: list[str], tokenizer: ClipTokenizer, name: str, models: Sequence[str]) -> int:
    """Log one warning if texts are longer than the context, and return how many distinct ones are.

    Args:
        texts: any texts; duplicates count once.
        tokenizer: the models' tokenizer.
        name: the set's name.
        models: the names of the models with this context.
    """
    context = tokenizer.context_length
    unique = sorted(set(texts))
    # No token is shorter than a byte, so shorter texts need not be tokenized.
    cut = [text for text in unique if len(text.encode()) > context - _ENDS]
    for each, least in ((tokenizer, context), (ClipTokenizer(_ANY_LENGTH), context + 1)):
        lengths = each.batch(cut)[1].tolist() if cut else []
        cut = [text for text, length in zip(cut, lengths, strict=True) if length >= least]
    if cut:
        LOG.warning(
            "evaluation set %s: %d of %d texts are longer than the %d tokens of the context of %s and are cut, such as "
            "%r", name, len(cut), len(unique), context, ", ".join(models), cut[0][:60],
        )  # fmt: skip
    return len(cut)


def shard_for_evaluation(model: DualEncoder) -> DualEncoder:
    """Shard a model over all processes by FSDP2: each block of both towers, and the rest. Return the same model.

    All processes have to call `encode_image` and `encode_text` equally often, as `embed_images` and `embed_texts` do.

    Args:
        model: whole, with the same weights on every process, on its own device.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.device.type, (distributed.world_size(),))
    for block in [*model.image.trunk.blocks, *model.text.tower.transformer.resblocks]:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in ("encode_image", "encode_text"):
        register_fsdp_forward_method(model, method)
    return model
