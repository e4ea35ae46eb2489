"""Regional, then global power mean: `rgem`."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmrep.config.heads import Negatives, RegionalGeMArgs
from mmrep.pooling.contract import Tokens, mean_dtype
from mmrep.pooling.gem import GGeM, generalized_mean


def _windows(x: Float[Tensor, "..."], axis: int, pad: int) -> Float[Tensor, "..."]:
    """Return windows of 2·pad + 1 positions around each position of an axis, in a new last axis; ends are reflected."""
    size = x.shape[axis]
    before, after = x.narrow(axis, 1, pad).flip(axis), x.narrow(axis, size - 1 - pad, pad).flip(axis)
    # Slices, since the gradient of torch's reflect padding is not deterministic on GPUs.
    return torch.cat([before, x, after], dim=axis).unfold(axis, 2 * pad + 1, 1)


def regional_mean(
    x: Float[Tensor, "batch rows columns width"],
    exponent: float,
    kernel: int,
    eps: float = 1e-6,
    negatives: Negatives = "clamp",
) -> Float[Tensor, "batch rows columns width"]:
    """Average every patch with the power mean of a window around it (SuperGlobal's regional GeM, arXiv 2308.06954):

        z = ½ · (1/k² Σ_{window} f(x)^p)^(1/p) + ½ · f(x)

    Windows have stride 1 and are reflected at the borders. Where a side of the grid has at most k // 2 patches, the
    window shrinks along that side to what reflection allows. The paper's values are not negative; for others there are
    the same three treatments as in `generalized_mean`.

    Args:
        x: patch tokens on their grid.
        exponent: p, positive.
        kernel: k, rows and columns of the window, odd.
        eps: floor of clamped values; for `signed`, the relative size of a mean power below which its root is smoothed.
        negatives: see `generalized_mean`; the minimum of `shift` is taken over the image.

    Returns:
        z in fp32 (in fp64 for fp64 input).
    """
    values = x.to(mean_dtype(x))
    info = torch.finfo(values.dtype)
    low: Tensor | float = 0.0
    if negatives == "clamp":
        values = values.clamp(min=eps)
    elif negatives == "shift":
        low = values.amin((1, 2), keepdim=True)
        values = values - low
    # A power is held as factor · exp(scale), with the largest scale of each window factored out: p = 100 then neither
    # overflows nor underflows in a window of small values. The floor keeps logarithms of zero finite.
    floor = values.detach().abs().amax((1, 2), keepdim=True).clamp(min=info.tiny) * info.eps**2
    scale = exponent * values.abs().clamp(min=floor.clamp(min=info.tiny)).log()
    factor = values.sign() if negatives == "signed" else torch.ones_like(values)
    # The mean over a square is the mean along its columns of the means along its rows; so is a reflected border.
    for axis in (1, 2):
        pad = min(kernel // 2, values.shape[axis] - 1)
        scales = _windows(scale, axis, pad)
        top = scales.detach().amax(-1)
        factor = (_windows(factor, axis, pad) * (scales - top[..., None]).exp()).mean(-1)
        scale = top
    if negatives == "signed":
        # sign(m)|m|^(1/p), smoothed at 0 as in `generalized_mean`.
        root = factor * (factor.square() + eps**2).pow((1 / exponent - 1) / 2)
    else:
        root = factor.pow(1 / exponent)
    return 0.5 * (root * (scale / exponent).exp() + values) + low


class RegionalGeM(GGeM):
    """SuperGlobal's pooling (Shao et al., arXiv 2308.06954): `regional_mean`, then GeM with one learnable exponent.

    The default arguments are the paper's: windows of 5 × 5 at p = 2.5, then p = 4.6. The paper sets both exponents
    after training; here the global one may be learned, and the regional one stays fixed.
    """

    needs_grid = True
    invariant = False

    def __init__(self, dim: int, num_heads: int | None, args: RegionalGeMArgs) -> None:
        super().__init__(dim, num_heads, args)
        self.regional_p = args.regional_p
        self.kernel = args.kernel

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        if x.shape[1] != tokens.grid[0] * tokens.grid[1]:
            raise ValueError(f"RegionalGeM: expected patches of a {tokens.grid} grid, got {x.shape[1]}")
        regional = regional_mean(x.unflatten(1, tokens.grid), self.regional_p, self.kernel, self.eps, self.negatives)
        return generalized_mean(regional.flatten(1, 2), self.channel_exponents(), self.eps, self.negatives).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, regional_p={self.regional_p}, kernel={self.kernel}"
