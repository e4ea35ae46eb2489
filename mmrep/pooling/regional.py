"""Regional, then global power means: `rgem`."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmrep.config.pooling import Negatives
from mmrep.pooling.contract import Tokens, mean_dtype
from mmrep.pooling.gem import GeM, generalized_mean


def _windows(x: Float[Tensor, "..."], axis: int, pad: int) -> Float[Tensor, "..."]:
    """Windows of 2·pad + 1 positions around every position of an axis, in a new last axis; reflected at the ends."""
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
    """The power mean of a window around every patch, averaged with the patch (Shao et al., SuperGlobal, arXiv
    2308.06954, regional GeM):

        z = ½ · (1/k² Σ_{window} f(x)^p)^(1/p) + ½ · f(x)

    Stride 1, reflected at the borders. Where a side of the grid has no more than k // 2 patches, reflection does not
    reach as far, and the window shrinks along that side to what it allows (to one patch on a side of one patch).
    The paper's values are not negative; the three ways to treat others are `generalized_mean`'s.

    Args:
        x: patch tokens on their grid.
        exponent: p, positive.
        kernel: k, rows and columns of the window, odd.
        eps: floor of clamped values; for `signed`, the relative size of a mean power below which its root is smoothed.
        negatives: `clamp`: f = max(x, ε). `shift`: the channel's minimum over the image is subtracted first and added
            to the result. `signed`: the mean of sign(x)·|x|^p, and its sign-preserving root.

    Returns:
        z, accumulated in fp32 (fp64 for fp64 input) and of that type.
    """
    values = x.to(mean_dtype(x))
    info = torch.finfo(values.dtype)
    low: Tensor | float = 0.0
    if negatives == "clamp":
        values = values.clamp(min=eps)
    elif negatives == "shift":
        low = values.amin((1, 2), keepdim=True)
        values = values - low
    # A power is held as factor · exp(scale) with the greatest scale of each window taken out, so that p = 100 neither
    # overflows nor leaves a window of small values without any. The floor keeps logarithms of zero finite.
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


class RegionalGeM(GeM):
    """SuperGlobal's pooling (Shao et al., arXiv 2308.06954): `regional_mean`, then GeM with one learnable exponent.

    The defaults are the paper's: windows of 5 × 5 at p = 2.5, then p = 4.6. There both exponents are set after
    training; here the global one may be learned, and the regional one stays.

    Args:
        dim: width of the tokens.
        p: initial exponent of the global mean.
        eps: see `regional_mean` and `generalized_mean`.
        negatives: see there; each mean treats the negative values that it is given.
        learn: whether the global exponent is trained.
        lr_scale: its learning rate over that of the other parameters.
        regional_p: exponent of the regional mean.
        kernel: rows and columns of its window.
    """

    needs_grid = True
    invariant = False

    def __init__(
        self,
        dim: int,
        p: float = 4.6,
        eps: float = 1e-6,
        negatives: Negatives = "clamp",
        learn: bool = True,
        lr_scale: float = 1.0,
        regional_p: float = 2.5,
        kernel: int = 5,
    ) -> None:
        super().__init__(dim, p, eps, negatives, learn, lr_scale)
        self.regional_p = regional_p
        self.kernel = kernel

    def pool(self, tokens: Tokens) -> Float[Tensor, "batch out"]:
        x = tokens.patches
        if x.shape[1] != tokens.grid[0] * tokens.grid[1]:
            raise ValueError(f"RegionalGeM: expected patches of a {tokens.grid} grid, got {x.shape[1]}")
        regional = regional_mean(x.unflatten(1, tokens.grid), self.regional_p, self.kernel, self.eps, self.negatives)
        return generalized_mean(regional.flatten(1, 2), self.channel_exponents(), self.eps, self.negatives).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, regional_p={self.regional_p}, kernel={self.kernel}"
