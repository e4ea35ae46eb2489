"""The regression's optimum: its gradient by autograd, penalties from huge to none, starts, chunks, copied samples."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.evaluation.scoring import logistic
from mmrep.evaluation.scoring.logistic import Linear, Regression

CPU = torch.device("cpu")


def cone(samples: int, width: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes in a narrow cone, of unit length: what image embeddings are like."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(0, classes, (samples - classes,), generator=generator)])
    centres = torch.randn(classes, width, generator=generator)
    noise = torch.randn(samples, width, generator=generator) * torch.arange(1, width + 1) ** -0.5
    return F.normalize(centres[labels] + 2 * noise + 6, dim=1), labels


def gradients(found: Linear, features: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    loss = F.cross_entropy(features.double() @ weight + bias, labels) + penalty / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None and bias.grad is not None
    return weight.grad, bias.grad


@pytest.mark.parametrize("penalty", [1e-8, 1e-5, 1e-2, 10.0])
@pytest.mark.parametrize("classes", [2, 7])
def test_the_gradient_vanishes(penalty: float, classes: int) -> None:
    features, labels = cone(300, 12, classes)
    found = Regression(features, labels, CPU).fit(penalty)
    assert found.converged
    for gradient in gradients(found, features, labels, penalty):
        assert gradient.abs().max() < 1e-6
    assert found.weight.sum(1).abs().max() < 1e-3 * found.weight.abs().max()  # the smallest of all equal solutions


def test_another_start_ends_at_the_same_place() -> None:
    features, labels = cone(300, 12, 5)
    regression = Regression(features, labels, CPU)
    near, cold = regression.fit(1e-5, regression.fit(1e-4)), regression.fit(1e-5)
    torch.testing.assert_close(near.weight, cold.weight, rtol=0, atol=1e-4 * float(cold.weight.abs().max()))
    again = regression.fit(1e-5, cold)
    assert again.iterations < 3 and cold.iterations > 10


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = cone(300, 12, 5)
    whole = Regression(features, labels, CPU).fit(1e-4)
    monkeypatch.setattr(logistic, "_LOGITS", 37 * 5)
    monkeypatch.setattr(logistic, "_WHOLE", 10)
    parts = Regression(features, labels, CPU)
    assert parts.features.dtype == torch.float32
    found = parts.fit(1e-4)
    torch.testing.assert_close(found.weight, whole.weight, rtol=0, atol=1e-5)
    assert [len(scores) for scores in found.scores(features)] == [37] * 8 + [4]
    assert found.accuracy(features, labels) == whole.accuracy(features, labels) > 0.5


def test_the_penalty_is_of_the_mean_loss() -> None:
    """So every sample twice changes nothing."""
    features, labels = cone(200, 8, 4)
    once = Regression(features, labels, CPU).fit(1e-4)
    twice = Regression(features.repeat(2, 1), labels.repeat(2), CPU).fit(1e-4)
    torch.testing.assert_close(once.weight, twice.weight, rtol=0, atol=1e-5)
    torch.testing.assert_close(once.bias, twice.bias, rtol=0, atol=1e-5)


def test_a_dimension_without_variance_and_one_class() -> None:
    features, labels = cone(100, 6, 3)
    features[:, 2] = 0.5
    found = Regression(features, labels, CPU).fit(1e-9)
    assert found.converged and found.weight.isfinite().all()
    alone = Regression(features, torch.zeros(100, dtype=torch.int64), CPU).fit(1e-3)
    assert alone.converged and alone.accuracy(features, torch.zeros(100, dtype=torch.int64)) == 1


def test_the_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = cone(300, 12, 5)
    monkeypatch.setattr(logistic, "_ITERATIONS", 3)
    assert not Regression(features, labels, CPU).fit(1e-7).converged
