"""The training loss: contrastive loss plus token distillation, by which auxiliary embeddings learn."""

import typing

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mmrep import distributed
from mmrep.config.checks import above, one_of
from mmrep.config.loss import Duplicates, Kind, LossConfig
from mmrep.loss.contrastive import Embedding, Logits, contrastive_loss, relations

Scalar = Float[Tensor, "1"] | Float[Tensor, ""] | float


def total_loss(
    image: Embedding,
    text: Embedding,
    logit_scale: Scalar,
    auxiliary: tuple[Embedding, ...],
    config: LossConfig,
    logit_bias: Scalar | None = None,
    groups: Int64[Tensor, " local"] | None = None,
    duplicates: Duplicates = "mask",
) -> Float[Tensor, ""]:
    """Return the training loss: (1 − λ)·contrastive + λτ²·distillation, or the contrastive loss alone for heads without
    auxiliary embeddings.

    Args:
        image: image embeddings of unit length, the teacher.
        text: text embeddings of unit length.
        logit_scale: the temperature factor.
        auxiliary: further image embeddings of unit length, each a student; their losses are averaged.
        config: kind, λ (`distill_weight`), τ (`distill_temperature`), `detach_teacher`.
        logit_bias: bias of the sigmoid loss.
        groups: see `contrastive_loss`.
        duplicates: see `contrastive_loss`. It replaces `config.duplicates`, which may be `auto`.

    Raises:
        ValueError: see `contrastive_loss` and `distillation_loss`.
    """
    contrastive = contrastive_loss(
        image, text, logit_scale, config.kind, groups, logit_bias=logit_bias, duplicates=duplicates
    )
    if not auxiliary:
        return contrastive
    losses = [
        distillation_loss(
            image, student, text, logit_scale, config.kind, config.distill_temperature, config.detach_teacher,
            logit_bias, groups, duplicates,
        )
        for student in auxiliary
    ]  # fmt: skip
    distillation = sum(losses[1:], losses[0]) / len(losses)
    weight = config.distill_weight
    return (1 - weight) * contrastive + weight * config.distill_temperature**2 * distillation


def distillation_loss(
    teacher: Embedding,
    student: Embedding,
    text: Embedding,
    logit_scale: Scalar,
    kind: Kind = "infonce",
    temperature: float = 1.0,
    detach_teacher: bool = True,
    logit_bias: Scalar | None = None,
    groups: Int64[Tensor, " local"] | None = None,
    duplicates: Duplicates = "mask",
) -> Float[Tensor, ""]:
    """Return KL(teacher ‖ student) over the pairs of all processes, without the factors λ and τ².

    This is MMCAP's token distillation with the classes replaced by the embeddings of the other modality.
    `infonce` compares the softmax of each row of logits / τ, averaged over rows and over both retrieval directions.
    `sigmoid` compares each pair's match, a Bernoulli variable with logit (scale·⟨image, text⟩ + bias) / τ, summed over
    the texts and averaged over the images, as in the sigmoid loss. A pair is the same in both directions.
    The mean over processes is the loss of the global batch, as with `contrastive_loss`.

    Args:
        teacher: image embeddings of unit length.
        student: image embeddings of unit length, of the same images.
        text: embeddings of unit length; row i matches row i of the images.
        logit_scale: the temperature factor.
        kind: `infonce` or `sigmoid`.
        temperature: τ, which softens both distributions.
        detach_teacher: whether the teacher's logits are constants. No gradient passes through them then, neither to
            the text embeddings nor to the temperature factor.
        logit_bias: bias of the sigmoid loss.
        groups: numbers that are equal for pairs of one caption or class.
        duplicates: with `mask`, pairs of one group off the diagonal are left out of both distributions.

    Raises:
        ValueError: shapes differ, the kind is unknown, the bias is missing or not needed, or the temperature is ≤ 0.
    """
    one_of("loss kind", kind, typing.get_args(Kind))
    one_of("duplicates", duplicates, ("mask", "positive", "negative"))
    above("distillation temperature", temperature, 0)
    if not teacher.shape == student.shape == text.shape or teacher.ndim != 2:
        shapes = ", ".join(str(tuple(x.shape)) for x in (teacher, student, text))
        raise ValueError(f"expected teacher, student and text of one shape (pairs, width), got {shapes}")
    if groups is not None and groups.shape != text.shape[:1]:
        raise ValueError(f"expected groups of shape ({len(text)},), got {tuple(groups.shape)}")
    if (logit_bias is not None) != (kind == "sigmoid"):
        raise ValueError(f"logit_bias: the sigmoid loss needs it and infonce has none, got {logit_bias} for {kind}")
    all_text = distributed.gather(text)
    first = distributed.rank() * len(text)
    _, ignored = relations(groups, duplicates, first, len(text), len(all_text), text.device)
    scale = logit_scale / temperature
    if kind == "sigmoid":
        assert logit_bias is not None, "checked above"
        bias = logit_bias / temperature
        taught, learned = (scale * x @ all_text.T + bias for x in (teacher, student))
        return _bernoulli_kl(taught.detach() if detach_teacher else taught, learned, ignored)
    total = text.new_zeros(())
    for taught, learned in (
        (scale * teacher @ all_text.T, scale * student @ all_text.T),
        (scale * text @ distributed.gather(teacher).T, scale * text @ distributed.gather(student).T),
    ):
        total = total + _softmax_kl(taught.detach() if detach_teacher else taught, learned, ignored) / 2
    return total


def _softmax_kl(taught: Logits, learned: Logits, ignored: Tensor | None) -> Float[Tensor, ""]:
    """Return the mean over rows of Σ p·log(p/q), where p and q are the softmax of a row without the pairs left out."""
    if ignored is not None:
        taught, learned = (x.masked_fill(ignored, float("-inf")) for x in (taught, learned))
    log_p, log_q = F.log_softmax(taught, dim=1), F.log_softmax(learned, dim=1)
    # Where a pair is left out, the difference is -inf − -inf, which is not a number.
    ratio = log_p - log_q if ignored is None else (log_p - log_q).masked_fill(ignored, 0)
    return (log_p.exp() * ratio).sum(1).mean()


def _bernoulli_kl(taught: Logits, learned: Logits, ignored: Tensor | None) -> Float[Tensor, ""]:
    """Return the mean over rows of Σ p·log(p/q) + (1 − p)·log((1 − p)/(1 − q)), where p and q are sigmoids."""
    yes = taught.sigmoid() * (F.logsigmoid(taught) - F.logsigmoid(learned))
    no = (-taught).sigmoid() * (F.logsigmoid(-taught) - F.logsigmoid(-learned))
    kl = yes + no if ignored is None else (yes + no).masked_fill(ignored, 0)
    return kl.sum(1).mean()
