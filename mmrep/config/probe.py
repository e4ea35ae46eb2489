"""The configs of linear probe and nearest neighbours on frozen image embeddings."""

from dataclasses import dataclass

from mmrep.config.checks import above, at_least, require, within


@dataclass(frozen=True)
class ProbeConfig:
    """A logistic regression on frozen embeddings. Its L2 penalty is chosen on a part of the training split.

    Attributes:
        validation: Share of the training split that the penalty is chosen on.
        penalties: L2 penalties λ to try, in mean loss + λ/2 · ‖W‖². With n images and embeddings of unit length, λ
            = 1/(C n) in scikit-learn's terms. A single one is used as it is, and nothing is held out.
        seed: Seed of the validation part, from 0 to 2^64 - 1.
    """

    validation: float = 0.2
    penalties: tuple[float, ...] = (1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
    seed: int = 0

    def __post_init__(self) -> None:
        within("probe.validation", self.validation, 0.01, 0.9)
        require(bool(self.penalties), "probe.penalties: expected at least one")
        for penalty in self.penalties:
            above("probe.penalties", penalty, 0)
        require(0 <= self.seed < 2**64, f"probe.seed: expected a value from 0 to 2^64 - 1, got {self.seed}")


@dataclass(frozen=True)
class KnnConfig:
    """Nearest neighbours by cosine similarity. Votes are weighted by exp(similarity / temperature).

    Attributes:
        k: Numbers of neighbours. Each is reported.
        temperature: Temperature of the votes' weights.
    """

    k: tuple[int, ...] = (1, 10, 20)
    temperature: float = 0.07

    def __post_init__(self) -> None:
        require(bool(self.k), "knn.k: expected at least one")
        for k in self.k:
            at_least("knn.k", k, 1)
        above("knn.temperature", self.temperature, 0)
