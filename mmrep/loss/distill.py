"""Token distillation: a head's auxiliary embedding learns from its embedding, beside the contrastive loss."""

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
    """What training minimises: (1 − λ)·contrastive + λτ²·distillation, or the contrastive loss alone for heads without
    auxiliary embeddings.

    Args:
        image: embeddings of unit length; the teacher.
        text: embeddings of unit length.
        logit_scale: the temperature factor.
        auxiliary: further image embeddings of unit length, each a student; their losses are averaged.
        config: kind, λ (`distill_weight`), τ (`distill_temperature`), `detach_teacher`.
        logit_bias: of the sigmoid loss.
        groups: see `contrastive_loss`.
        duplicates: see `contrastive_loss`; goes before `config.duplicates`, where `auto` is resolved.

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
    """KL(teacher ‖ student) of what the two say about the pairs of all processes (MMCAP's token distillation, with the
    classes replaced by the other modality's embeddings).

    `infonce`: of the softmax of each row of logits / τ, averaged over rows and over both retrieval directions.
    `sigmoid`: of each pair's match, a Bernoulli variable with logit (scale·⟨image, text⟩ + bias) / τ, summed over the
    texts and averaged over the images, as the sigmoid loss is; a pair is the same in both directions.
    The mean over processes is the loss of the global batch, as with `contrastive_loss`. Without λ and τ².

    Args:
        teacher: image embeddings of unit length.
        student: image embeddings of unit length, of the same images.
        text: embeddings of unit length; row i matches row i of the images.
        logit_scale: the temperature factor.
        kind: `infonce` or `sigmoid`.
        temperature: τ, which softens both distributions.
        detach_teacher: whether the teacher's logits are constants: no gradient through them, to the text embeddings
            and the temperature factor included.
        logit_bias: of the sigmoid loss.
        groups: equal for pairs that match each other too.
        duplicates: with `mask`, pairs of one group off the diagonal are left out of both distributions.

    Raises:
        ValueError: shapes that differ, an unknown kind, a missing or needless bias, a temperature ≤ 0.
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
    """Mean over rows of Σ p·log(p/q), p and q the softmax of a row without the pairs left out."""
    if ignored is not None:
        taught, learned = (x.masked_fill(ignored, float("-inf")) for x in (taught, learned))
    log_p, log_q = F.log_softmax(taught, dim=1), F.log_softmax(learned, dim=1)
    # -inf − -inf, where a pair is left out.
    ratio = log_p - log_q if ignored is None else (log_p - log_q).masked_fill(ignored, 0)
    return (log_p.exp() * ratio).sum(1).mean()


def _bernoulli_kl(taught: Logits, learned: Logits, ignored: Tensor | None) -> Float[Tensor, ""]:
    """Mean over rows of the sum of p·log(p/q) + (1 − p)·log((1 − p)/(1 − q)), p and q the sigmoids."""
    yes = taught.sigmoid() * (F.logsigmoid(taught) - F.logsigmoid(learned))
    no = (-taught).sigmoid() * (F.logsigmoid(-taught) - F.logsigmoid(-learned))
    kl = yes + no if ignored is None else (yes + no).masked_fill(ignored, 0)
    return kl.sum(1).mean()
