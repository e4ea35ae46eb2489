"""The config of instance retrieval: scales and reranking."""

from dataclasses import dataclass

from mmrep.config.checks import above, at_least, require


@dataclass(frozen=True)
class InstanceConfig:
    """Image-to-image retrieval of instances.

    Attributes:
        scales: Scales of the image side. Descriptors of several scales are merged by their maximum (SuperGlobal).
        rerank: Reorder the first results (SuperGlobal).
        rerank_top: Number M of results to reorder.
        neighbours: Number K of neighbours that refine a descriptor.
        beta: Weight β of a neighbour.
    """

    scales: tuple[float, ...] = (1.0,)
    rerank: bool = False
    rerank_top: int = 400
    neighbours: int = 9
    beta: float = 0.15

    def __post_init__(self) -> None:
        require(bool(self.scales), "instance.scales: expected at least one")
        for scale in self.scales:
            above("instance.scales", scale, 0)
        at_least("instance.rerank_top", self.rerank_top, 1)
        at_least("instance.neighbours", self.neighbours, 1)
        at_least("instance.beta", self.beta, 0)
