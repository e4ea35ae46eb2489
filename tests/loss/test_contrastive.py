"""Losses against plain float64 references, group masks, gradients, wrong use."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmrep.loss import contrastive_loss

PAIRS, WIDTH, SCALE, BIAS = 6, 8, 12.0, -3.0
GROUPS = torch.tensor([0, 1, 0, 2, 1, 3])


def embeddings(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(PAIRS, WIDTH, generator=generator), dim=1).to(dtype) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def reference(kind: str, duplicates: str, groups: torch.Tensor | None) -> float:
    """Written pair by pair in float64, with nothing but the definitions."""
    image, text = (x.detach().double().numpy() for x in embeddings())
    logits = SCALE * image @ text.T
    same = np.eye(PAIRS, dtype=bool) if groups is None else (groups[:, None] == groups[None]).numpy()
    total = 0.0
    for matrix in (logits, logits.T) if kind == "infonce" else (logits + BIAS,):
        for i in range(PAIRS):
            row = 0.0
            if kind == "infonce":
                kept = [j for j in range(PAIRS) if not (duplicates == "mask" and same[i, j] and i != j)]
                matches = [j for j in range(PAIRS) if (same[i, j] if duplicates == "positive" else i == j)]
                norm = math.log(sum(math.exp(matrix[i, j]) for j in kept))
                row = -sum(matrix[i, j] - norm for j in matches) / len(matches)
            else:
                for j in range(PAIRS):
                    if duplicates == "mask" and same[i, j] and i != j:
                        continue
                    match = same[i, j] if duplicates == "positive" else i == j
                    row += math.log1p(math.exp(-matrix[i, j] if match else matrix[i, j]))
            total += row / PAIRS
    return total / (2 if kind == "infonce" else 1)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("duplicates", ["mask", "positive", "negative"])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_agrees_with_the_definition(kind: str, duplicates: str, groups: torch.Tensor | None) -> None:
    image, text = embeddings()
    bias = BIAS if kind == "sigmoid" else None
    loss = contrastive_loss(image, text, SCALE, kind, groups, logit_bias=bias, duplicates=duplicates)
    assert loss.item() == pytest.approx(reference(kind, duplicates, groups), rel=1e-5)
    loss.backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().sum() > 0


def test_masks_change_the_loss() -> None:
    image, text = embeddings()
    losses = {
        d: contrastive_loss(image, text, SCALE, groups=GROUPS, duplicates=d).item()
        for d in ("mask", "positive", "negative")
    }
    assert len({round(loss, 6) for loss in losses.values()}) == 3
    assert losses["mask"] < losses["negative"]


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_a_group_of_all_pairs_leaves_only_the_matches(kind: str) -> None:
    image, text = embeddings()
    bias = BIAS if kind == "sigmoid" else None
    loss = contrastive_loss(image, text, SCALE, kind, torch.zeros(PAIRS, dtype=torch.int64), logit_bias=bias)
    matches = SCALE * (image * text).sum(1) + (bias or 0)
    expected = torch.zeros(()) if kind == "infonce" else -F.logsigmoid(matches).mean()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)


def test_temperature_and_bias_receive_gradients() -> None:
    image, text = embeddings()
    scale, bias = torch.tensor([SCALE], requires_grad=True), torch.tensor([BIAS], requires_grad=True)
    contrastive_loss(image, text, scale, "sigmoid", logit_bias=bias).backward()
    assert scale.grad is not None and scale.grad.item() != 0
    assert bias.grad is not None and bias.grad.item() != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": torch.zeros(PAIRS + 1, WIDTH)}, "one shape"),
        ({"groups": torch.zeros(PAIRS + 1, dtype=torch.int64)}, "groups of shape"),
        ({"tile": 4}, "tile"),
        ({"logit_bias": -3.0}, "infonce has none"),
        ({"kind": "sigmoid"}, "sigmoid loss needs it"),
        ({"kind": "clip"}, "valid: infonce, sigmoid"),
        ({"duplicates": "drop"}, "valid: mask, positive, negative"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_use_is_refused(change: dict[str, object], message: str) -> None:
    image, text = embeddings()
    arguments = {"image": image, "text": text, "logit_scale": SCALE, **change}
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**arguments)  # type: ignore[arg-type]
