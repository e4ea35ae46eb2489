"""Choosing the exponent after training: the trunk runs once over held-out images, the head once for each p.

SuperGlobal (Shao et al., arXiv 2308.06954) sets p of a model trained otherwise in this way.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrep.config.checks import ConfigError, MmrepError, require
from mmrep.config.evaluation import EvaluationConfig
from mmrep.config.pooling import PoolConfig
from mmrep.config.sweep import SweepConfig
from mmrep.evaluation.embedding.embed import Views, centre_of, embed_images, embed_texts
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.scoring.classification import zeroshot_metrics
from mmrep.evaluation.scoring.ranking import retrieval_metrics
from mmrep.evaluation.sets import EvalSet
from mmrep.evaluation.suite import Result
from mmrep.evaluation.tasks.retrieval import flat_captions
from mmrep.evaluation.tasks.zeroshot import embed_classes
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.trunk import num_heads
from mmrep.pooling import PoolingHead, Tokens
from mmrep.pooling.gem import GGeM, exponents_of
from mmrep.pooling.registry import build_configured


class State(NamedTuple):
    """A head under test.

    Attributes:
        p: value of all its exponents; None for the trained head as it is.
        head: the head. It shares all parameters but the exponents with the other states.
    """

    p: float | None
    head: PoolingHead

    @property
    def name(self) -> str:
        """The state's name in results."""
        return "trained" if self.p is None else f"p={self.p:g}"


class Sweep(NamedTuple):
    """The results of a sweep.

    Attributes:
        states: the trained head first, then by rising p.
        results: results of each state on each set.
        put_in: the head that replaces the trained one for every p, or None where the trained one is swept.
    """

    states: list[State]
    results: list[list[Result]]
    put_in: PoolConfig | None


def sweep(
    model: DualEncoder, sets: Sequence[EvalSet], asked: SweepConfig, config: EvaluationConfig, quiet: bool = True
) -> Sweep:
    """Evaluate a model as trained, and with all its exponents set to each p.

    Args:
        model: the model in evaluation mode. It is not changed.
        sets: sets to evaluate on. Each image is decoded once and passes the trunk once.
        asked: the exponents, and the head that replaces the model's own.
        config: batch sizes, workers.
        quiet: show no progress bars.

    Raises:
        ConfigError: there are no exponents to set and no head that fits, or a set cannot be swept.
        DataError: a sample is unreadable.
        MmrepError: embeddings are not finite.
    """
    check_sweepable(sets)
    put_in, head = _swept_head(model, asked)
    states = [State(None, model.image.pool), *(State(p, _at(head, p)) for p in sorted(asked.p))]
    results: list[list[Result]] = [[] for _ in states]

    def encode(views: Views) -> list[Tensor]:
        pixels = views[centre_of(model)].to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.precision == "bf16"):
            tokens = model.image.tokens(pixels)
            found = [_embed(model, state.head, tokens) for state in states]
        return [F.normalize(x.float(), dim=-1) for x in found]

    for evalset in sets:
        embedded = embed_images(encode, [centre_of(model)], evalset.records, config, evalset.name, quiet)
        for i, evaluation in enumerate(_evaluate(model, evalset, embedded, config.text_batch_size)):
            if not embedded[i].isfinite().all():
                raise MmrepError(
                    f"{states[i].name}: embeddings on {evalset.name} are not finite; did training diverge?"
                )
            results[i].append(Result(states[i].name, evalset, evalset.task, evaluation))
    return Sweep(states, results, put_in)


def check_sweepable(sets: Sequence[EvalSet]) -> None:
    """Raise ConfigError for a set with other tasks than zero-shot classification and retrieval."""
    for evalset in sets:
        kind = "a multilabel set" if evalset.multilabel else None
        other = next((task for task in (evalset.task, *evalset.tasks) if task not in ("zeroshot", "retrieval")), None)
        found = kind or (other and f"task {other}")
        require(
            found is None,
            f"evaluation set {evalset.name}: {found} can't be swept; a sweep chooses on tasks zeroshot (one class an "
            "image) and retrieval",
        )


def _swept_head(model: DualEncoder, asked: SweepConfig) -> tuple[PoolConfig | None, PoolingHead]:
    """Return the head whose exponents are set, with its config where it is not the model's own."""
    own, image = model.image.pool, model.image
    name = model.config.pooling.name
    if asked.pool is None and exponents_of(own) is not None:
        require(
            asked.negatives is None, f"--negatives: the trained {name!r} keeps its own; --pool puts another head in"
        )
        return None, own
    put_in = asked.replacement
    head = build_configured(put_in, image.width, num_heads(image.trunk)).to(model.device).eval()
    if head.out_dim != own.out_dim:
        raise ConfigError(
            f"nothing to sweep: {name!r} has no exponents, and {put_in.name!r} can't stand in its place: it gives "
            f"{head.out_dim} channels, where the trained projection reads {own.out_dim}"
        )
    return put_in, head


def _at(head: PoolingHead, p: float) -> PoolingHead:
    """Return a copy of a head with all exponents set to p. Other parameters are shared, not copied."""
    shared = {id(value): value for name, value in head.named_parameters() if not name.endswith("log_exponent")}
    other = copy.deepcopy(head, shared)
    for module in other.modules():
        if isinstance(module, GGeM):
            module.set_exponents(p)
    return other


def _embed(model: DualEncoder, head: PoolingHead, tokens: Tokens) -> Tensor:
    """Return the image tower's embedding of its trunk's tokens with another head."""
    image = model.image
    return image.project(head(tokens if head.num_stages else tokens._replace(stages=())).embedding)


def _evaluate(model: DualEncoder, evalset: EvalSet, embedded: list[Tensor], text_batch: int) -> list[Evaluation]:
    """Return the metrics of every state. The texts, which no head changes, are encoded once."""
    positions = range(len(evalset.records))
    if evalset.task == "zeroshot":
        classes = embed_classes(model, evalset, text_batch)
        labels = [evalset.records.label(position) for position in positions]
        return [zeroshot_metrics(images, classes, labels) for images in embedded]
    captions, image_of_text = flat_captions([evalset.records.texts(position) for position in positions])
    texts = embed_texts(model, captions, text_batch)
    return [retrieval_metrics(images, texts, image_of_text) for images in embedded]
