"""The config of a study, a paired comparison of poolings."""

from dataclasses import dataclass, field
from typing import Any

from mmrep.config.checks import at_least, one_of, quoted, require, within
from mmrep.config.pooling import PoolConfig

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class DiagnosticsConfig:
    """Measurements inside the trained models, on images of the first set with captions or one class an image.

    Attributes:
        images: Images whose activations are measured; 0 leaves all diagnostics out.
        accuracy_images: Images that are classified (or searched) again at other sizes and without their salient
            part.
        pictures: Images whose patch weights are drawn.
        sizes: Image sizes in pixels. By default 3/4, 1, 5/4 and 3/2 of the training size, in whole patches; []
            measures none.
    """

    images: int = 256
    accuracy_images: int = 1000
    pictures: int = 6
    sizes: list[int] | None = None

    def __post_init__(self) -> None:
        at_least("study.diagnostics.images", self.images, 0)
        at_least("study.diagnostics.accuracy_images", self.accuracy_images, 1)
        at_least("study.diagnostics.pictures", self.pictures, 0)
        for size in self.sizes or []:
            at_least("study.diagnostics.sizes", size, 1)


@dataclass(frozen=True)
class StudyConfig:
    """Poolings, seeds, baseline and primary metric of a study.

    Attributes:
        pools: The heads to compare, each as in model.pool.
        seeds: Seeds. Every head is trained once with each, and differences are paired by seed.
        baseline: Label of the head that the others are compared to. By default avg if it takes part, else the
            first.
        primary: The metric that verdicts are about, as SET/METRIC. By default the first set's main metric. All
            others are exploratory. Choose it before the first run.
        confidence: Level of the confidence intervals.
        diagnostics: Measurements inside the trained models.
    """

    pools: list[str | dict[str, Any]] = field(default_factory=lambda: ["cls", "avg", "ggem"])
    seeds: list[int] = field(default_factory=lambda: [0])
    baseline: str | None = None
    primary: str | None = None
    confidence: float = 0.95
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    def __post_init__(self) -> None:
        require(len(self.pools) > 0, "study.pools: expected at least one head")
        labels = [str(pool.label) for pool in self.poolings]
        require(len(set(labels)) == len(labels), f"study.pools: two heads share a label ({', '.join(labels)})")
        require(len(self.seeds) > 0, "study.seeds: expected at least one seed")
        require(len(set(self.seeds)) == len(self.seeds), f"study.seeds: each seed once, got {self.seeds}")
        for seed in self.seeds:
            within("study.seeds", seed, 0, LARGEST_SEED)
        within("study.confidence", self.confidence, 0.5, 0.9999)
        if self.primary is not None:
            require(
                "/" in self.primary,
                f"study.primary: expected SET/METRIC, as in cifar10/acc1, got {quoted(self.primary)}",
            )
        if self.baseline is not None:
            one_of("study.baseline", self.baseline, labels)

    @property
    def poolings(self) -> list[PoolConfig]:
        """The heads as configs."""
        return [PoolConfig.parse(pool, f"study.pools[{i}]") for i, pool in enumerate(self.pools)]

    @property
    def reference(self) -> str:
        """Label of the baseline."""
        labels = [str(pool.label) for pool in self.poolings]
        return self.baseline or ("avg" if "avg" in labels else labels[0])
