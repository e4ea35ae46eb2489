"""Token distillation against plain float64 references, λ and τ, masks, gradients, two processes, wrong use."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrep.config.checks import ConfigError
from mmrep.config.loss import LossConfig
from mmrep.loss import contrastive_loss, distillation_loss, total_loss

PAIRS, WIDTH, SCALE, BIAS = 6, 8, 12.0, -3.0
GROUPS = torch.tensor([0, 1, 0, 2, 1, 3])
KINDS = ["infonce", "sigmoid"]


def embeddings(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(PAIRS, WIDTH, generator=generator) for _ in range(count)]
    return [F.normalize(x, dim=1).requires_grad_() for x in drawn]


def bias_of(kind: str) -> float | None:
    return BIAS if kind == "sigmoid" else None


def reference(kind: str, temperature: float, groups: torch.Tensor | None, duplicates: str) -> float:
    """Written pair by pair in float64, with nothing but the definitions."""
    teacher, student, text = (x.detach().double().numpy() for x in embeddings())
    same = np.eye(PAIRS, dtype=bool) if groups is None else (groups[:, None] == groups[None]).numpy()
    taught, learned = (SCALE * x @ text.T for x in (teacher, student))
    kept = [[j for j in range(PAIRS) if not (duplicates == "mask" and same[i, j] and i != j)] for i in range(PAIRS)]
    total = 0.0
    if kind == "sigmoid":
        for i in range(PAIRS):
            for j in kept[i]:
                p, q = (1 / (1 + math.exp(-(x[i, j] + BIAS) / temperature)) for x in (taught, learned))
                total += (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / PAIRS
        return total
    for a, b in ((taught, learned), (taught.T, learned.T)):
        for i in range(PAIRS):
            p, q = ({j: math.exp(x[i, j] / temperature) for j in kept[i]} for x in (a, b))
            for j in kept[i]:
                pj, qj = p[j] / sum(p.values()), q[j] / sum(q.values())
                total += pj * math.log(pj / qj) / PAIRS / 2
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("duplicates", ["mask", "positive", "negative"])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_agrees_with_the_definition(
    kind: str, temperature: float, duplicates: str, groups: torch.Tensor | None
) -> None:
    teacher, student, text = embeddings()
    loss = distillation_loss(
        teacher, student, text, SCALE, kind, temperature, True, bias_of(kind), groups, duplicates
    )  # fmt: skip
    assert loss.item() == pytest.approx(reference(kind, temperature, groups, duplicates), rel=1e-5)
    assert loss.item() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [None, GROUPS, torch.zeros(PAIRS, dtype=torch.int64)])
@pytest.mark.parametrize("detach", [True, False])
def test_zero_with_zero_gradient_where_student_is_teacher(kind: str, groups: torch.Tensor | None, detach: bool) -> None:
    teacher, _, text = embeddings()
    student = teacher.detach().clone().requires_grad_()
    loss = distillation_loss(teacher, student, text, SCALE, kind, 1.5, detach, bias_of(kind), groups)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    for x in (student, text) if detach else (student, text, teacher):
        assert x.grad is not None and x.grad.abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_gradients_against_finite_differences(kind: str, groups: torch.Tensor | None) -> None:
    teacher, student, text = (x.detach().double().requires_grad_() for x in embeddings())
    scale, bias = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (3.0, -1.0))

    def loss(*given: torch.Tensor) -> torch.Tensor:
        *inputs, scale, bias = given
        return distillation_loss(*inputs, scale, kind, 1.5, False, bias if kind == "sigmoid" else None, groups)

    assert torch.autograd.gradcheck(loss, (teacher, student, text, scale, bias))


@pytest.mark.parametrize("kind", KINDS)
def test_a_detached_teacher_gives_no_gradient(kind: str) -> None:
    gradients = {}
    for detach in (True, False):
        teacher, student, text = embeddings()
        distillation_loss(teacher, student, text, SCALE, kind, 1.0, detach, bias_of(kind)).backward()
        assert student.grad is not None and student.grad.abs().sum() > 0.01
        assert (teacher.grad is None) == detach
        gradients[detach] = student.grad, text.grad
    torch.testing.assert_close(gradients[True][0], gradients[False][0])
    # The text embeddings are in the teacher's logits too: these are constants where it is detached.
    assert not torch.allclose(gradients[True][1], gradients[False][1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [0.2, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_total_is_weighted(kind: str, weight: float, temperature: float) -> None:
    teacher, student, text = embeddings()
    config = LossConfig(kind=kind, distill_weight=weight, distill_temperature=temperature)
    loss = total_loss(teacher, text, SCALE, (student,), config, bias_of(kind), GROUPS, "mask")
    contrastive = contrastive_loss(teacher, text, SCALE, kind, GROUPS, logit_bias=bias_of(kind)).item()
    distillation = reference(kind, temperature, GROUPS, "mask")
    expected = (1 - weight) * contrastive + weight * temperature**2 * distillation
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (teacher, student, text))


def test_total_without_students_is_the_contrastive_loss() -> None:
    image, text = embeddings(2)
    total = total_loss(image, text, SCALE, (), LossConfig(distill_weight=0.9), groups=GROUPS)
    assert torch.equal(total, contrastive_loss(image, text, SCALE, groups=GROUPS))


def test_several_students_are_averaged() -> None:
    image, one, text, two = embeddings(4)
    losses = [total_loss(image, text, SCALE, students, LossConfig()) for students in ((one,), (two,), (one, two))]
    torch.testing.assert_close(losses[2], (losses[0] + losses[1]) / 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("detach", [True, False])
def test_the_mean_over_two_processes_is_the_global_loss(
    monkeypatch: pytest.MonkeyPatch, kind: str, detach: bool
) -> None:
    from mmrep import distributed

    config = LossConfig(kind=kind, distill_temperature=1.5, detach_teacher=detach)

    def gradients(run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> list[Any]:
        inputs = embeddings()
        loss = run(*inputs)
        loss.backward()
        return [loss.detach(), *(x.grad for x in inputs)]

    def alone(teacher: torch.Tensor, student: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return total_loss(teacher, text, SCALE, (student,), config, bias_of(kind), GROUPS)

    def in_two(*inputs: torch.Tensor) -> torch.Tensor:
        def gather(local: torch.Tensor) -> torch.Tensor:
            """The whole tensor that the rows were cut from, with gradients where the rows have them."""
            found = next(x for x in inputs if torch.equal(x[here], local))
            return found if local.requires_grad else found.detach()

        losses = []
        for rank in range(2):
            here = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
            fake = SimpleNamespace(rank=lambda r=rank: r, gather=gather, gather_ids=lambda ids: GROUPS)
            for name in ("rank", "gather", "gather_ids"):
                monkeypatch.setattr(distributed, name, getattr(fake, name))
            teacher, student, text = (x[here] for x in inputs)
            losses.append(total_loss(teacher, text, SCALE, (student,), config, bias_of(kind), GROUPS[here]))
        return (losses[0] + losses[1]) / 2

    expected = gradients(alone)
    for one, other in zip(gradients(in_two), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_for_logits_that_saturate(kind: str) -> None:
    teacher, student, text = embeddings()
    loss = distillation_loss(teacher, student, text, 1e4, kind, 1.0, False, bias_of(kind), GROUPS)
    loss.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in (teacher, student, text))
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": torch.zeros(PAIRS + 1, WIDTH)}, "one shape"),
        ({"groups": torch.zeros(PAIRS + 1, dtype=torch.int64)}, "groups of shape"),
        ({"logit_bias": -3.0}, "infonce has none"),
        ({"kind": "sigmoid"}, "sigmoid loss needs it"),
        ({"kind": "clip"}, "valid: infonce, sigmoid"),
        ({"duplicates": "drop"}, "valid: mask, positive, negative"),
        ({"temperature": 0.0}, "expected a value > 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_use_is_refused(change: dict[str, object], message: str) -> None:
    teacher, student, text = embeddings()
    arguments = {"teacher": teacher, "student": student, "text": text, "logit_scale": SCALE, **change}
    with pytest.raises(ValueError, match=message):
        distillation_loss(**arguments)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.5])
def test_a_weight_that_leaves_one_loss_out_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="loss.distill_weight: expected .* between 0 and 1, got .*distill: false"):
        LossConfig(distill_weight=weight)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="loss.distill_temperature: expected a value > 0"):
        LossConfig(distill_temperature=0.0)
