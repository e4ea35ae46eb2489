"""Multinomial logistic regression with an L2 penalty, to its optimum: L-BFGS on all samples, in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

_ROWS, _LOGITS = 8192, 2**23
"""Most samples and most logits at a time: 64 MiB of either."""
_WHOLE = 2**28
"""Features of at most so many values (2 GiB) are kept in float64; larger ones are converted chunk by chunk."""
_GRADIENT = 1e-7
"""The fit has converged when no entry of the preconditioned gradient is larger."""
_MEMORY, _ITERATIONS = 20, 1000
"""Pairs that L-BFGS keeps, and its most iterations."""


class Linear(NamedTuple):
    """A linear classifier.

    Attributes:
        weight: a column for each class.
        bias: one number for each class.
        iterations: number of L-BFGS iterations.
        converged: whether L-BFGS reached the optimum.
    """

    weight: Float64[Tensor, "embed classes"]
    bias: Float64[Tensor, " classes"]
    iterations: int
    converged: bool

    def scores(self, features: Float[Tensor, "samples embed"]) -> Iterator[Float64[Tensor, "_ classes"]]:
        """Yield logits on the CPU, chunk after chunk."""
        for chunk in features.split(_rows(len(self.bias))):
            yield (chunk.to(self.weight) @ self.weight + self.bias).cpu()

    def accuracy(self, features: Float[Tensor, "samples embed"], labels: Int64[Tensor, " samples"]) -> float:
        """Return the share of samples whose own class has the largest logit."""
        predicted = torch.cat([scores.argmax(1) for scores in self.scores(features)])
        return float((predicted == labels).double().mean())


class Regression:
    """Logistic regression: the minimum of (1/n) Σ cross-entropy(xW + b) + λ/2 ‖W‖² over W and b.

    With λ = 1/(C n) this is scikit-learn's `LogisticRegression(C=C)`. L-BFGS works on preconditioned coordinates: on U
    in W = B U, where B Bᵀ = (Σ/K + λ)⁻¹ with the features' covariance Σ and K classes, and on the bias of centred
    features. B Bᵀ is nearly the inverse of the Hessian at W = 0 (Böhning, "Multinomial logistic regression algorithm",
    1992, has the bound). This leaves the optimum where it is and saves most iterations, as image embeddings lie in a
    narrow cone.

    Args:
        features: one row a sample.
        labels: the class of each sample, from 0 on; each class occurs.
        device: where to compute.
    """

    def __init__(
        self, features: Float[Tensor, "samples embed"], labels: Int64[Tensor, " samples"], device: torch.device
    ) -> None:
        self.features = features.to(device, torch.float64 if features.numel() <= _WHOLE else features.dtype)
        self.labels = labels.to(device)
        self.classes = int(labels.max()) + 1
        rows = _rows(self.classes)
        self.mean = sum(chunk.double().sum(0) for chunk in self.features.split(rows)) / len(features)
        centred = ((chunk.double() - self.mean) for chunk in self.features.split(rows))
        covariance = sum(chunk.T @ chunk for chunk in centred) / len(features)
        self.spread, self.axes = torch.linalg.eigh(covariance)

    def fit(self, penalty: float, start: Linear | None = None) -> Linear:
        """Return the optimum.

        Args:
            penalty: λ.
            start: where to begin, such as the optimum of another λ; None: at zero.
        """
        from scipy.optimize import minimize  # slow to import

        scale = (self.spread.clamp(min=0) / self.classes + penalty).rsqrt()
        basis, bias_scale = self.axes * scale, self.classes**0.5

        def unpack(values: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            both = torch.from_numpy(values).to(self.mean.device).view(-1, self.classes)
            weight = basis @ both[:-1]
            return weight, both[-1] * bias_scale - self.mean @ weight

        def objective(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight, bias = unpack(values)
            loss, by_weight, by_bias = self._loss(weight, bias)
            by_weight += penalty * weight
            gradient = torch.cat([basis.T @ by_weight, by_bias[None] * bias_scale])
            return loss + penalty / 2 * float(weight.square().sum()), gradient.flatten().cpu().numpy()

        begin = torch.zeros(len(self.mean) + 1, self.classes, dtype=torch.float64)
        if start is not None:
            begin[:-1] = (self.axes.T @ start.weight / scale[:, None]).cpu()
            begin[-1] = ((start.bias + self.mean @ start.weight) / bias_scale).cpu()
        options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "maxcor": _MEMORY, "gtol": _GRADIENT}
        options["ftol"] = 64 * float(np.finfo(np.float64).eps)
        found = minimize(objective, begin.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
        return Linear(*unpack(found.x), int(found.nit), bool(found.success))

    def _loss(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean cross-entropy and its gradients by the weight and by the bias of centred features."""
        loss, by_weight, by_bias = weight.new_zeros(()), torch.zeros_like(weight), torch.zeros_like(bias)
        rows = _rows(self.classes)
        for chunk, labels in zip(self.features.split(rows), self.labels.split(rows), strict=True):
            values = chunk.double()
            logits = values @ weight + bias
            own = labels[:, None]
            normaliser = logits.logsumexp(1, keepdim=True)
            loss += (normaliser - logits.gather(1, own)).sum()
            error = (logits - normaliser).exp_().scatter_add_(1, own, -torch.ones_like(normaliser))
            by_weight += values.T @ error
            by_bias += error.sum(0)
        by_weight -= torch.outer(self.mean, by_bias)
        count = len(self.features)
        return float(loss) / count, by_weight / count, by_bias / count


def _rows(classes: int) -> int:
    return max(1, min(_ROWS, _LOGITS // classes))
