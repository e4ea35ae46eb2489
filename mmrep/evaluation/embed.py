"""Embeddings of a set's images and texts, each image decoded once for all models."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mmrep.config.evaluation import EvaluationConfig
from mmrep.data.decode import read_image
from mmrep.data.loader import default_workers
from mmrep.data.tar import DataError
from mmrep.data.transforms import resize_center
from mmrep.evaluation.sets import EvalSet
from mmrep.model.dual_encoder import DualEncoder

Size = tuple[int, int]


class _Item(NamedTuple):
    """One image at every size asked for, with its label or captions."""

    images: dict[Size, Tensor]
    label: int
    texts: list[str]


class _Images(Dataset[_Item | DataError]):
    def __init__(self, evalset: EvalSet, sizes: Sequence[Size]) -> None:
        self.evalset = evalset
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.evalset.samples)

    def __getitem__(self, position: int) -> _Item | DataError:
        index, row = self.evalset.samples[position]
        try:
            image = read_image(index, row)
            images = {size: resize_center(image, size) for size in self.sizes}
            if self.evalset.task == "zeroshot":
                return _Item(images, self.evalset.label(position), [])
            return _Item(images, -1, self.evalset.texts(position))
        except DataError as error:
            return error


class _Items(NamedTuple):
    """A batch of images at every size, stacked: from a worker each tensor comes through a file descriptor."""

    images: dict[Size, Tensor]
    labels: list[int]
    texts: list[list[str]]


def _collate(items: list[_Item | DataError]) -> _Items | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    good = [item for item in items if isinstance(item, _Item)]
    images = {size: torch.stack([item.images[size] for item in good]) for size in good[0].images}
    return _Items(images, [item.label for item in good], [item.texts for item in good])


class Embedded(NamedTuple):
    """A set as models see it.

    Attributes:
        images: for each model, the image embeddings, of unit length, on the CPU.
        labels: of each image; empty for retrieval.
        texts: the captions of each image; empty for zero-shot sets.
    """

    images: list[Float[Tensor, "images embed"]]
    labels: list[int]
    texts: list[list[str]]


def embed_set(
    models: Sequence[DualEncoder], evalset: EvalSet, config: EvaluationConfig, quiet: bool = True
) -> Embedded:
    """The image embeddings of a set under every model.

    Args:
        models: in evaluation mode, on one device.
        evalset: the set.
        config: batch size and workers.
        quiet: show no progress bar.

    Raises:
        DataError: an image, label or caption that can't be read.
    """

    def encode(images: dict[Size, Tensor]) -> list[Tensor]:
        return [model.encode_image(images[model.image.size].to(model.device)) for model in models]

    return embed_images(encode, sorted({model.image.size for model in models}), evalset, config, quiet)


@torch.inference_mode()
def embed_images(
    encode: Callable[[dict[Size, Tensor]], list[Tensor]],
    sizes: Sequence[Size],
    evalset: EvalSet,
    config: EvaluationConfig,
    quiet: bool = True,
) -> Embedded:
    """The image embeddings of a set under whatever makes several of each batch.

    Args:
        encode: a batch of uint8 images on the CPU, at every size, to embeddings of unit length: each time as many
            tensors, one for each entry of `Embedded.images`.
        sizes: which `encode` reads.
        evalset: the set.
        config: batch size and workers.
        quiet: show no progress bar.

    Raises:
        DataError: an image, label or caption that can't be read.
    """
    workers = default_workers(1) if config.workers is None else config.workers
    loader: DataLoader[Any] = DataLoader(
        _Images(evalset, sizes), batch_size=config.batch_size, num_workers=workers, collate_fn=_collate
    )
    batches: list[list[Tensor]] = []
    labels: list[int] = []
    texts: list[list[str]] = []
    for items in tqdm(loader, desc=evalset.name, unit="batch", disable=quiet, leave=False):
        if isinstance(items, DataError):
            raise items
        batches.append([embeddings.cpu() for embeddings in encode(items.images)])
        labels += items.labels if evalset.task == "zeroshot" else []
        texts += items.texts if evalset.task == "retrieval" else []
    return Embedded([torch.cat(parts) for parts in zip(*batches, strict=True)], labels, texts)


@torch.inference_mode()
def embed_texts(model: DualEncoder, texts: list[str], batch_size: int) -> Float[Tensor, "texts embed"]:
    """Text embeddings of unit length on the CPU, in the order given.

    Texts are sorted by length first, so that batches are cut short; each distinct text is encoded once.
    """
    unique = sorted(set(texts), key=lambda text: (len(text), text))
    parts = []
    for start in range(0, len(unique), batch_size):
        tokens, _ = model.tokenizer.batch(unique[start : start + batch_size])
        parts.append(model.encode_text(tokens.to(model.device)).cpu())
    rows = {text: row for row, text in enumerate(unique)}
    return torch.cat(parts)[[rows[text] for text in texts]]
