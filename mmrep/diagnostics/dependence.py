"""Dependence between groups of channels: correlation, and HSIC, which also measures nonlinear dependence."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.diagnostics.features import ImageBatches
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.trunk import num_heads
from mmrep.pooling.gem import GGeM

Kernel = Literal["rbf", "linear"]

SAMPLES = 1024
"""Most tokens sampled. A kernel matrix has the square of this number of entries."""
HSIC_GROUPS = 16
"""Most groups compared by HSIC: their kernel matrices take 128 MB."""
_FEWEST = 8


class Dependence(NamedTuple):
    """Dependence between groups of channels.

    Attributes:
        samples: number of tokens.
        groups: number of groups.
        between: mean absolute correlation of two channels of different groups; None for a single group.
        within: the same for two channels of one group; None where no group has two that vary.
        floor: the expected value of `between` for independent normal channels and this number of samples.
        hsic_rbf: normalised HSIC, mean over pairs of groups: expected to be 0 for independent groups, 1 for equal ones;
            None for a single group.
        hsic_linear: the same with a linear kernel.
    """

    samples: int
    groups: int
    between: float | None
    within: float | None
    floor: float
    hsic_rbf: float | None
    hsic_linear: float | None


@torch.inference_mode()
def sample_tokens(
    model: DualEncoder, batches: ImageBatches, limit: int = SAMPLES, seed: int = 0
) -> Float[Tensor, "samples width"]:
    """Sample one patch token of each image, as the head reads it: tokens of one image would not be independent.

    Args:
        model: in evaluation mode.
        batches: images as `encode_image` takes them; they are read until there are `limit` samples.
        limit: most samples.
        seed: seed of the choice of patches, which depends on it and on the number of patches alone.

    Returns:
        The tokens on the CPU.
    """
    generator, parts, count = torch.Generator().manual_seed(seed), [], 0
    for images in batches:
        patches = model.image.tokens(images[: limit - count].to(model.device)).patches
        chosen = torch.tensor(
            [int(torch.randint(patches.shape[1], (1,), generator=generator)) for _ in range(len(patches))],
            device=patches.device,
        )
        parts.append(patches[torch.arange(len(patches), device=patches.device), chosen].float().cpu())
        count += len(patches)
        if count == limit:
            break
    if not parts:
        raise ConfigError("dependence between groups: no images were given")
    return torch.cat(parts)


def channel_groups(model: DualEncoder, of_head: bool = True) -> Int64[Tensor, " width"]:
    """Return the group of every channel.

    Args:
        model: the model.
        of_head: use the head's groups if it is, or contains, a ggem. Otherwise, and for other heads, each attention
            head of the trunk is a group, so that the groups are the same for all pooling heads of a study.

    Raises:
        ConfigError: neither the head has groups nor the trunk's blocks a number of heads.
    """
    for module in model.image.pool.modules() if of_head else ():
        if isinstance(module, GGeM) and module.groups > 1:
            return module.group_of_channel.cpu()
    heads = num_heads(model.image.trunk)
    if heads is None:
        raise ConfigError("dependence between groups: the trunk does not say how many heads it has; give the groups")
    return torch.arange(model.image.width) * heads // model.image.width


def group_dependence(samples: Float[Tensor, "samples width"], groups: Int64[Tensor, " width"]) -> Dependence:
    """Return correlation and HSIC between groups of channels, without the channels that never vary.

    Args:
        samples: independent samples of all channels.
        groups: the group of every channel.

    Raises:
        ConfigError: fewer than 8 samples.
    """
    if len(samples) < _FEWEST:
        raise ConfigError(f"dependence between groups: expected at least {_FEWEST} samples, got {len(samples)}")
    scores, kept = _standardised(samples)
    groups = groups[kept]
    between, within = mean_correlation(scores, groups)
    names: list[int] = groups.unique().tolist()
    if len(names) > HSIC_GROUPS:
        names = [names[i * len(names) // HSIC_GROUPS] for i in range(HSIC_GROUPS)]
    parts = [scores[:, groups == name] for name in names]
    rbf, linear = (mean_hsic(parts, kernel) for kernel in ("rbf", "linear"))
    floor = math.sqrt(2 / (math.pi * (len(samples) - 1)))
    return Dependence(len(samples), len(groups.unique()), between, within, floor, rbf, linear)


def _standardised(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return fp64 z-scores of the channels that vary, and a mask of these channels."""
    x = samples.double()
    spread = x.std(0)
    kept = spread > 1e-6 * x.abs().amax(0)
    return (x[:, kept] - x[:, kept].mean(0)) / spread[kept], kept


def mean_correlation(
    scores: Float64[Tensor, "samples width"], groups: Int64[Tensor, " width"]
) -> tuple[float | None, float | None]:
    """Return the mean absolute Pearson correlation of two channels of different groups, and of one group."""
    correlation = (scores.T @ scores / (len(scores) - 1)).abs()
    same = groups[:, None] == groups[None, :]
    pairs = ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)
    between, within = correlation[~same], correlation[same & pairs]
    return (between.mean().item() if len(between) else None), (within.mean().item() if len(within) else None)


def mean_hsic(parts: list[Float64[Tensor, "samples _"]], kernel: Kernel = "rbf") -> float | None:
    """Return HSIC(X, Y) / √(HSIC(X, X)·HSIC(Y, Y)), averaged over all pairs; None where no two parts vary.

    HSIC is the unbiased estimator (Song et al., JMLR 13 (2012), 1393-1434), as the inner product of
    U-centred kernel matrices over n(n−3) (Székely & Rizzo, arXiv 1310.2926); the ratio is the debiased CKA
    (Kornblith et al., arXiv 1905.00414, with the estimator of Nguyen et al., arXiv 2010.15327).

    Args:
        parts: the channels of each group; a row of each is the same sample.
        kernel: `rbf`: exp(−‖x−y‖²/2σ²), where σ is the median distance of two samples; `linear`.
    """
    if not parts:
        return None
    rows = torch.stack([_u_centred(_kernel_matrix(part, kernel)).flatten() for part in parts])
    products = rows @ rows.T
    sizes = products.diagonal().clamp(min=0).sqrt()
    first, second = torch.triu_indices(len(parts), len(parts), offset=1)
    ratios = products[first, second] / (sizes[first] * sizes[second])
    ratios = ratios[ratios.isfinite()]
    return ratios.mean().item() if len(ratios) else None


def _kernel_matrix(x: Tensor, kernel: Kernel) -> Tensor:
    if kernel == "linear":
        return x @ x.T
    squares = torch.cdist(x, x).square()
    first, second = torch.triu_indices(len(x), len(x), offset=1)
    # The median is 0 where most samples are equal; then any positive width will do.
    median = squares[first, second].median().clamp(min=torch.finfo(x.dtype).tiny)
    return torch.exp(-squares / (2 * median))


def _u_centred(kernel: Tensor) -> Tensor:
    """Return a kernel matrix with a zero diagonal, centred so that every row and column sums to 0."""
    n = len(kernel)
    matrix = kernel.clone().fill_diagonal_(0)
    rows = matrix.sum(1) / (n - 2)
    total = matrix.sum() / ((n - 1) * (n - 2))
    return (matrix - rows[:, None] - rows[None, :] + total).fill_diagonal_(0)
