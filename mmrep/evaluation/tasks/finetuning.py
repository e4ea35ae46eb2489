"""Training of an image tower with a linear classifier on labelled images, at one learning rate."""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmrep import distributed
from mmrep.config.evaluation import EvaluationConfig
from mmrep.config.finetune import FinetuneConfig
from mmrep.config.training import in_steps
from mmrep.data.draws import Purpose, permutation, uniforms
from mmrep.data.loader import default_workers
from mmrep.data.tar import DataError
from mmrep.data.transforms import CROP_DRAWS, view_of_decoded
from mmrep.evaluation.sources.records import Records
from mmrep.model.dual_encoder import DualEncoder

Draw = tuple[int, int]
"""Epoch and position in the training split."""


class Classifier(nn.Module):
    """A copy of a model's image tower with a linear classifier on its embeddings, which starts at zero.

    Args:
        model: the model; it is not changed.
        classes: number of classes.
    """

    def __init__(self, model: DualEncoder, classes: int) -> None:
        super().__init__()
        self.tower = copy.deepcopy(model.image)
        self.linear = nn.Linear(self.tower.embed_dim, classes, device=model.device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.bf16 = model.precision == "bf16"
        exempt, scales = model.no_weight_decay(), model.lr_scales()
        self.exempt = {name.removeprefix("image.") for name in exempt if name.startswith("image.")}
        self.lr_scales = {name.removeprefix("image."): scale for name, scale in scales.items()}

    def forward(self, images: UInt8[Tensor, "batch 3 rows columns"]) -> Float[Tensor, "batch classes"]:
        """Return fp32 logits from embeddings that are not normalised."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            embedding = self.tower(images).embedding
        return self.linear(embedding.float())


class Epoch(NamedTuple):
    """Figures of one epoch of training.

    Attributes:
        lr: the tower's learning rate at its end.
        loss: mean cross-entropy over its images, each before the step that it takes part in.
        acc1: accuracy over its images, likewise.
    """

    lr: float
    loss: float
    acc1: float


def fine_tune(
    model: DualEncoder,
    records: Records,
    labels: Sequence[int],
    positions: Sequence[int],
    classes: int,
    lr: float,
    config: EvaluationConfig,
) -> tuple[Classifier, list[Epoch]]:
    """Train a copy of the image tower and a new classifier with cross-entropy, AdamW, warm-up and a half cosine.

    A sample's crop and mirroring depend on the seed, the epoch and its position; dropout, where the tower has any, on
    the seed. The global random state is not changed. Every process ends with the first one's weights.

    Args:
        model: the model; it is not changed.
        records: the training split.
        labels: the class of each of its images.
        positions: the images to train on.
        classes: number of classes.
        lr: peak learning rate of the tower.
        config: its `finetune`, and the number of workers.

    Returns:
        The classifier in evaluation mode, and its learning curve.

    Raises:
        DataError: an image that can't be read.
    """
    device = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(device), torch.enable_grad():
        torch.manual_seed(config.finetune.seed)
        classifier = Classifier(model, classes).train()
        curve = _train(classifier, records, labels, positions, lr, config)
    # CUDA's sums are not reproducible, and the processes share the scoring.
    distributed.copy_from_first(classifier)
    return classifier.eval(), curve


def _train(
    classifier: Classifier,
    records: Records,
    labels: Sequence[int],
    positions: Sequence[int],
    lr: float,
    config: EvaluationConfig,
) -> list[Epoch]:
    options, device = config.finetune, classifier.linear.weight.device
    optimizer = _optimizer(classifier, lr, options)
    epochs = [_batches(positions, epoch, options) for epoch in range(options.epochs)]
    batches = _pixels(records, classifier.tower.size, epochs, config)
    curve, step, steps = [], 0, sum(map(len, epochs))
    for epoch in epochs:
        loss_sum, right = 0.0, 0
        for batch in epoch:
            share = _schedule(step, steps, in_steps(options.warmup, steps))
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            wanted = torch.tensor([labels[position] for _, position in batch], device=device)
            loss, hits = _step(classifier, optimizer, next(batches).to(device), wanted)
            loss_sum, right, step = loss_sum + loss * len(batch), right + hits, step + 1
        curve.append(Epoch(lr * share, loss_sum / len(positions), right / len(positions)))
    return curve


def _step(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    images: UInt8[Tensor, "batch 3 rows columns"],
    labels: Int64[Tensor, " batch"],
) -> tuple[float, int]:
    """Take a step; return the loss before it, and the number of images that were right."""
    logits = classifier(images)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), int((logits.argmax(1) == labels).sum())


def _batches(positions: Sequence[int], epoch: int, config: FinetuneConfig) -> list[list[Draw]]:
    """Return the batches of an epoch, in an order of its own; the last one may be smaller."""
    order = [positions[i] for i in permutation(config.seed, len(positions), stream=epoch).tolist()]
    return [
        [(epoch, position) for position in order[start : start + config.batch_size]]
        for start in range(0, len(order), config.batch_size)
    ]


class _Crops(Dataset[Tensor | DataError]):
    def __init__(self, records: Records, size: tuple[int, int], config: FinetuneConfig) -> None:
        self.records = records
        self.size = size
        self.config = config

    def __getitem__(self, draw: Draw) -> Tensor | DataError:
        epoch, position = draw
        try:
            image = self.records.image(position)
        except DataError as error:
            return error
        seed = self.config.seed
        crop = uniforms(seed, Purpose.CROP, position, words=CROP_DRAWS, stream=epoch)[0]
        flip = bool(uniforms(seed, Purpose.FLIP, position, stream=epoch)[0, 0] < 0.5) and self.config.flip
        return view_of_decoded(image, "random_resized", self.config.min_scale, self.size, crop, flip)


def _pixels(
    records: Records, size: tuple[int, int], epochs: list[list[list[Draw]]], config: EvaluationConfig
) -> Iterator[Tensor]:
    """Yield the pixels of all batches; workers live through all epochs."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    loader: DataLoader[Any] = DataLoader(
        _Crops(records, size, config.finetune),
        batch_sampler=[batch for epoch in epochs for batch in epoch],
        num_workers=default_workers(processes) if config.workers is None else config.workers,
        collate_fn=_stacked,
        generator=torch.Generator(),  # otherwise the workers' seed is drawn from the global random state
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _stacked(items: list[Tensor | DataError]) -> Tensor | DataError:
    error = next((item for item in items if isinstance(item, DataError)), None)
    return error or torch.stack([item for item in items if isinstance(item, Tensor)])


def _optimizer(classifier: Classifier, lr: float, config: FinetuneConfig) -> torch.optim.AdamW:
    """Return AdamW; matrices decay unless the model exempts them. Groups keep their peak rate as `peak`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in classifier.tower.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 and name not in classifier.exempt else 0.0
            groups.setdefault((lr * classifier.lr_scales.get(name, 1.0), decay), []).append(parameter)
    weight, bias = classifier.linear.parameters()
    groups.setdefault((config.classifier_lr, config.weight_decay), []).append(weight)
    groups.setdefault((config.classifier_lr, 0.0), []).append(bias)
    return torch.optim.AdamW(
        [{"params": params, "peak": peak, "weight_decay": decay} for (peak, decay), params in groups.items()]
    )


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Return the share of the peak rate: a linear warm-up, then half a cosine that reaches zero after the last step."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
