"""mmrep's own pooling heads: each has a dataclass of arguments, whose docstring describes it, and a registration."""

from dataclasses import dataclass
from typing import Literal

from mmrep.config.checks import above, at_least, require
from mmrep.config.pools import register_pool

Negatives = Literal["clamp", "shift", "signed"]
Grouping = Literal["contiguous", "random"]

MAX_EXPONENT = 100.0
"""Exponents are kept from 1/MAX_EXPONENT to this. Beyond it, fp32 cannot tell a power mean from the maximum."""


@dataclass(frozen=True)
class ClassTokenArgs:
    """The class token (ViT, arXiv 2010.11929)."""


register_pool("cls", ClassTokenArgs, "mmrep.pooling.mean:ClassToken")


@dataclass(frozen=True)
class AverageArgs:
    """The mean of the patch tokens."""


register_pool("avg", AverageArgs, "mmrep.pooling.mean:Average")


@dataclass(frozen=True)
class MaximumArgs:
    """The maximum of the patch tokens, channel by channel."""


register_pool("max", MaximumArgs, "mmrep.pooling.mean:Maximum")


@dataclass(frozen=True)
class AverageMaximumArgs:
    """Half the sum of mean and maximum (timm's avgmax)."""


register_pool("avgmax", AverageMaximumArgs, "mmrep.pooling.mean:AverageMaximum")


@dataclass(frozen=True)
class GeMArgs:
    """Generalised (power) mean with one learned exponent (arXiv 1711.02512).

    Attributes:
        p: initial exponent.
        eps: floor of clamped values, and the scale below which `signed` is smoothed.
        negatives: how negative tokens are treated (`clamp`, `shift`, `signed`).
        learn: whether the exponent is trained.
        lr_scale: learning rate of the exponent, relative to that of the other parameters.
    """

    p: float = 3.0
    eps: float = 1e-6
    negatives: Negatives = "clamp"
    learn: bool = True
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        above("pool args.p", self.p, 0)
        require(self.p <= MAX_EXPONENT, f"pool args.p: expected at most {MAX_EXPONENT:g}, got {self.p}; use pool 'max'")
        require(self.p >= 1 / MAX_EXPONENT, f"pool args.p: expected at least {1 / MAX_EXPONENT:g}, got {self.p}")
        above("pool args.eps", self.eps, 0)
        above("pool args.lr_scale", self.lr_scale, 0)


register_pool("gem", GeMArgs, "mmrep.pooling.gem:GGeM")


@dataclass(frozen=True)
class GGeMArgs(GeMArgs):
    """Generalised mean with a learned exponent for each group of channels (GGeM, arXiv 2212.04114).

    Attributes:
        groups: number of groups; `channel` learns one exponent for each channel; None takes the number of the trunk's
            attention heads.
        grouping: `contiguous` slices of channels, or a fixed `random` partition (an A/A control).
        grouping_seed: seed of the random partition.
    """

    groups: int | Literal["channel"] | None = None
    grouping: Grouping = "contiguous"
    grouping_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.groups", None if self.groups == "channel" else self.groups, 1)


register_pool("ggem", GGeMArgs, "mmrep.pooling.gem:GGeM")


@dataclass(frozen=True)
class RegionalGeMArgs(GeMArgs):
    """Regional, then global power mean (SuperGlobal, arXiv 2308.06954).

    Attributes:
        p: initial exponent of the global mean.
        regional_p: exponent of the mean over a window; it is not trained.
        kernel: rows and columns of the window, an odd number.
    """

    p: float = 4.6
    regional_p: float = 2.5
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        above("pool args.regional_p", self.regional_p, 0)
        require(self.regional_p <= MAX_EXPONENT, f"pool args.regional_p: expected at most {MAX_EXPONENT:g}")
        at_least("pool args.kernel", self.kernel, 1)
        require(self.kernel % 2 == 1, f"pool args.kernel: expected an odd number, got {self.kernel}")


register_pool("rgem", RegionalGeMArgs, "mmrep.pooling.regional:RegionalGeM")


@dataclass(frozen=True)
class ReluAvgArgs:
    """The mean of the positive parts: a control for what clamping alone does in gem.

    Attributes:
        eps: floor of clamped values.
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        above("pool args.eps", self.eps, 0)


register_pool("relu_avg", ReluAvgArgs, "mmrep.pooling.mean:ClampedAverage")


@dataclass(frozen=True)
class LogSumExpArgs:
    """Log-sum-exp with a learned sharpness (arXiv 1411.6228).

    Attributes:
        r: initial sharpness. Towards 0 the result is the mean, towards infinity the maximum.
        learn: whether the sharpness is trained.
        lr_scale: learning rate of the sharpness, relative to that of the other parameters.
    """

    r: float = 5.0
    learn: bool = True
    lr_scale: float = 1.0

    def __post_init__(self) -> None:
        above("pool args.r", self.r, 0)
        require(self.r <= 1e4, f"pool args.r: expected at most 10000, got {self.r:g}; use pool 'max'")
        above("pool args.lr_scale", self.lr_scale, 0)


register_pool("lse", LogSumExpArgs, "mmrep.pooling.lse:LogSumExp")


@dataclass(frozen=True)
class AvgMlpArgs:
    """The mean and an MLP of chosen size: a control for heads that add parameters.

    Attributes:
        params: parameters of the MLP, as closely as its hidden width allows; None takes 8 × width², as `cap` has.
    """

    params: int | None = None

    def __post_init__(self) -> None:
        at_least("pool args.params", self.params, 1)


register_pool("avg_mlp", AvgMlpArgs, "mmrep.pooling.avg_mlp:AverageMlp")


@dataclass(frozen=True)
class MapArgs:
    """Attention pooling with one learned query and an MLP (SigLIP's MAP head).

    Attributes:
        num_heads: attention heads; None takes as many as the trunk has.
        mlp_ratio: hidden width of the MLP, relative to the token width.
    """

    num_heads: int | None = None
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        at_least("pool args.num_heads", self.num_heads, 1)
        above("pool args.mlp_ratio", self.mlp_ratio, 0)


register_pool("map", MapArgs, "mmrep.pooling.attention:AttentionPool")


@dataclass(frozen=True)
class SimPoolArgs:
    """Attention with the mean token as query (SimPool, arXiv 2309.06891).

    Attributes:
        heads: attention heads, independent of the trunk's.
        gamma: exponent of the weighted power mean of the values; None takes their weighted mean.
        eps: added to the values, which are shifted to be positive.
    """

    heads: int = 1
    gamma: float | None = 1.25
    eps: float = 1e-6

    def __post_init__(self) -> None:
        at_least("pool args.heads", self.heads, 1)
        above("pool args.gamma", self.gamma, 0)
        above("pool args.eps", self.eps, 0)


register_pool("simpool", SimPoolArgs, "mmrep.pooling.attention:SimPool")


@dataclass(frozen=True)
class CapArgs:
    """Class attention with one class token (CaiT; MMCAP's CAP).

    Attributes:
        num_heads: attention heads; None takes as many as the trunk has.
        ffn_ratio: hidden width of the FFN, relative to the token width; 0 leaves the FFN out.
    """

    num_heads: int | None = None
    ffn_ratio: float = 2.0

    def __post_init__(self) -> None:
        at_least("pool args.num_heads", self.num_heads, 1)
        at_least("pool args.ffn_ratio", self.ffn_ratio, 0)


register_pool("cap", CapArgs, "mmrep.pooling.cap:ClassAttentionPool")


@dataclass(frozen=True)
class MultiCapArgs(CapArgs):
    """Class attention with several class tokens and token distillation (MMCAP's MCAP).

    Attributes:
        tokens: number of class tokens.
        distill: whether a mean token is trained as the student of the others (`loss.distill_*`).
    """

    tokens: int = 4
    distill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.tokens", self.tokens, 1)


register_pool("mcap", MultiCapArgs, "mmrep.pooling.cap:MultiCap")


@dataclass(frozen=True)
class MultiStageCapArgs(MultiCapArgs):
    """Class attention with several class tokens over the patches of several depths (MMCAP).

    Attributes:
        stages: depths read besides the last one, evenly spaced over the blocks; 0 makes it `mcap`.
    """

    stages: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.stages", self.stages, 0)


register_pool("mmcap", MultiStageCapArgs, "mmrep.pooling.cap:MultiStageCap")


@dataclass(frozen=True)
class LightCapArgs(CapArgs):
    """The mean token of mmcap alone, for inference (mmrep export --format mmcap_light).

    Attributes:
        tokens: number of class tokens that the mean is taken of.
        stages: depths read besides the last one.
    """

    tokens: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pool args.tokens", self.tokens, 1)
        at_least("pool args.stages", self.stages, 0)


register_pool("mmcap_light", LightCapArgs, "mmrep.pooling.cap:LightCap")
