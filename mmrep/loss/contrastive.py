"""Contrastive losses over the pairs of all processes: InfoNCE and sigmoid, with group masks."""

import typing

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmrep import distributed
from mmrep.config.checks import one_of
from mmrep.config.loss import Duplicates, Kind

Embedding = Float[Tensor, "local width"]
Logits = Float[Tensor, "local global"]


def contrastive_loss(
    image: Embedding,
    text: Embedding,
    logit_scale: Float[Tensor, "1"] | Float[Tensor, ""] | float,
    kind: Kind = "infonce",
    groups: Int64[Tensor, " local"] | None = None,
    tile: int | None = None,
    logit_bias: Float[Tensor, "1"] | Float[Tensor, ""] | float | None = None,
    duplicates: Duplicates = "mask",
) -> Float[Tensor, ""]:
    """Return the contrastive loss of this process's pairs against the pairs of all processes.

    `infonce` (CLIP; Radford et al., arXiv 2103.00020): cross-entropy over scale·⟨image, text⟩, mean of both directions.
    `sigmoid` (SigLIP; Zhai et al., arXiv 2303.15343): −log σ(z·(scale·⟨image, text⟩ + bias)), z = ±1, summed over
    the texts and averaged over the images.
    The mean over processes is the loss of the global batch, and gradients averaged by DDP are its gradients.

    Args:
        image: embeddings of unit length.
        text: embeddings of unit length; row i matches row i of `image`.
        logit_scale: the temperature factor.
        kind: `infonce` or `sigmoid`.
        groups: numbers that are equal for pairs of one caption or class; None means that only the diagonal matches.
        tile: must be None; the tiled loss is not available yet.
        logit_bias: bias of the sigmoid loss.
        duplicates: treatment of pairs of one group off the diagonal: `mask` leaves them out, `positive` counts them as
            matches, `negative` does not.

    Raises:
        ValueError: shapes differ, the kind is unknown, or the bias is missing or not needed.
    """
    one_of("loss kind", kind, typing.get_args(Kind))
    one_of("duplicates", duplicates, ("mask", "positive", "negative"))
    if image.shape != text.shape or image.ndim != 2:
        raise ValueError(
            f"expected image and text of one shape (pairs, width), got {tuple(image.shape)}, {tuple(text.shape)}"
        )
    if groups is not None and groups.shape != image.shape[:1]:
        raise ValueError(f"expected groups of shape ({len(image)},), got {tuple(groups.shape)}")
    if tile is not None:
        raise ValueError("tile: the tiled loss is not available in this version; leave it None")
    if (logit_bias is not None) != (kind == "sigmoid"):
        raise ValueError(f"logit_bias: the sigmoid loss needs it and infonce has none, got {logit_bias} for {kind}")
    first = distributed.rank() * len(image)
    all_image, all_text = distributed.gather(image), distributed.gather(text)
    matches, ignored = relations(groups, duplicates, first, len(image), len(all_image), image.device)
    if kind == "sigmoid":
        assert logit_bias is not None, "checked above"
        return _sigmoid(logit_scale * image @ all_text.T + logit_bias, matches, ignored)
    to_text = _infonce(logit_scale * image @ all_text.T, matches, ignored)
    return (to_text + _infonce(logit_scale * text @ all_image.T, matches, ignored)) / 2


def relations(
    groups: Tensor | None, duplicates: str, first: int, local: int, total: int, device: torch.device
) -> tuple[Bool[Tensor, "local global"], Bool[Tensor, "local global"] | None]:
    """Return which pairs match, and which are left out, or None where none are.

    Args:
        groups: groups of this process's pairs.
        duplicates: see `contrastive_loss`.
        first: column of this process's first pair among those of all processes.
        local: number of this process's pairs.
        total: number of pairs of all processes.
        device: device of the masks.
    """
    rows = torch.arange(local, device=device)
    diagonal = torch.zeros(local, total, dtype=torch.bool, device=device)
    diagonal[rows, first + rows] = True
    if groups is None or duplicates == "negative":
        return diagonal, None
    same = groups[:, None] == distributed.gather_ids(groups)[None]
    return (same, None) if duplicates == "positive" else (diagonal, same & ~diagonal)


def _infonce(logits: Logits, matches: Tensor, ignored: Tensor | None) -> Float[Tensor, ""]:
    """Return the cross-entropy against the matches. A row with several matches has equal weight on each."""
    if ignored is not None:
        logits = logits.masked_fill(ignored, float("-inf"))
    log_prob = F.log_softmax(logits, dim=1)
    return -(log_prob.masked_fill(~matches, 0).sum(1) / matches.sum(1)).mean()


def _sigmoid(logits: Logits, matches: Tensor, ignored: Tensor | None) -> Float[Tensor, ""]:
    loss = -F.logsigmoid(torch.where(matches, logits, -logits))
    if ignored is not None:
        loss = loss.masked_fill(ignored, 0)
    return loss.sum(1).mean()
