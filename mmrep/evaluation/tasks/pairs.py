"""Choice among confusable captions, as in SugarCrepe and Winoground.

- SugarCrepe (Hsieh et al., arXiv 2306.14610): text_acc is the share of images that are nearer to the right caption than
  to every wrong one.
- Winoground (Thrush et al., arXiv 2204.03162, section 3.3), two images and two captions an example: text_acc is the
  share of examples where both images are nearer to their own caption, image_acc that where both captions are nearer to
  their own image, and acc that where both hold.

Names and ties are CLIP_benchmark's, whose argmax takes the first: a tie is right for an example's first image or
caption (so always in SugarCrepe) and wrong for its second. `pessimistic` counts every tie as wrong.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy import ndarray
from torch import Tensor

from mmrep.config.checks import require
from mmrep.data.tar import DataError
from mmrep.evaluation.context import Context
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet
from mmrep.evaluation.sources.pairs import PairRecords
from mmrep.evaluation.tasks.retrieval import flat_captions

LOG = logging.getLogger("mmrep")

Scores = Float32[ndarray, "images captions"]
"""Cosine similarities of an image with the right caption, then with the wrong ones; NaN where it has fewer."""
Right = Mapping[str, Bool[ndarray, " examples"]]
"""For each metric, which examples are right."""

WINOGROUND_CHANCE = {"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6}
"""Chance levels for independent continuous scores: in 4 of 24 orders both right scores are the largest."""


def pairs(context: Context) -> list[Evaluation]:
    """Return the metrics of choice among confusable captions for every model.

    A set of captions in CLIP_benchmark's layout is read in SugarCrepe's form: an image's first caption is the right
    one.

    Raises:
        ConfigError: a set without captions.
        DataError: an image with one caption only, one image of an example of two.
        MmrepError: embeddings that are not finite.
    """
    evalset, texts = context.evalset, _captions(context)
    examples = _examples(evalset)
    kinds = _kinds(evalset, examples)
    flat, owner = flat_captions(texts)
    found = []
    for (name, model), images in zip(context.models.items(), context.images, strict=True):
        similarities = (context.encode_texts(model, flat) * images[owner]).sum(1)
        scores = _padded(similarities, [len(own) for own in texts])
        evaluation = pair_metrics(scores, examples, kinds)
        _warn_of_ties(evaluation, name, evalset.name)
        found.append(evaluation)
    return found


def pair_metrics(
    scores: Scores, examples: Sequence[int] | None = None, kinds: Mapping[str, Sequence[int]] | None = None
) -> Evaluation:
    """Return the metrics of images' scores with their right and wrong captions.

    Args:
        scores: scores of every image.
        examples: in Winoground's form the example of each image. Its two images follow each other, each with the
            other's caption as its wrong one. None: SugarCrepe's form.
        kinds: for each kind the rows of `scores` (in Winoground's form the examples) of that kind. With several
            kinds in SugarCrepe's form, `text_acc_macro` is the mean over them.
    """
    captions = np.count_nonzero(~np.isnan(scores), axis=1)
    if examples is None:
        chance = {"text_acc": float((1 / captions).mean())}
        named, strict = _choices(scores)
    else:
        chance = dict(WINOGROUND_CHANCE)
        named, strict = _winoground(scores)
    metrics, pessimistic = _means(named), _means(strict)
    further: dict[str, float] = {}
    of_kinds = {
        kind: {"n": len(rows), **{metric: float(right[rows].mean()) for metric, right in named.items()}}
        for kind, rows in (kinds or {}).items()
    }
    if examples is None and kinds and len(kinds) > 1:
        further["text_acc_macro"] = float(np.mean([each["text_acc"] for each in of_kinds.values()]))
        pessimistic["text_acc_macro"] = float(np.mean([strict["text_acc"][rows].mean() for rows in kinds.values()]))
    outcomes = {"scores": scores}
    if examples is not None:
        outcomes["example"] = np.asarray(examples)
    head = ["kind", "n", *metrics]
    rows = [[kind, *map(str, found.values())] for kind, found in of_kinds.items()]
    return Evaluation(
        metrics,
        chance,
        outcomes,
        further,
        pessimistic,
        details={"kinds": of_kinds} if of_kinds else {},
        tables={"kinds": [head, *rows]} if of_kinds else {},
    )


def _choices(scores: Scores) -> tuple[Right, Right]:
    """Return which images are right, with ties for and against the right caption."""
    best_wrong = np.nanmax(scores[:, 1:], axis=1)
    return {"text_acc": scores[:, 0] >= best_wrong}, {"text_acc": scores[:, 0] > best_wrong}


def _winoground(scores: Scores) -> tuple[Right, Right]:
    """Return which examples are right, with ties as CLIP_benchmark breaks them, and with ties against the right answer.

    Row 0 of an example is image 0 under captions 0 and 1, row 1 image 1 under captions 1 and 0.
    """
    own, other = scores[:, 0].reshape(-1, 2), scores[:, 1].reshape(-1, 2)
    # An image's wrong caption is the other image's, so a caption's score with its wrong image is in the other row.
    rivals = {"text_acc": other, "image_acc": other[:, ::-1]}
    named = {name: (own[:, 0] >= rival[:, 0]) & (own[:, 1] > rival[:, 1]) for name, rival in rivals.items()}
    strict = {name: (own[:, 0] > rival[:, 0]) & (own[:, 1] > rival[:, 1]) for name, rival in rivals.items()}
    for right in (named, strict):
        right["acc"] = right["text_acc"] & right["image_acc"]
    return named, strict


def _means(right: Right) -> dict[str, float]:
    return {name: float(hits.mean()) for name, hits in right.items()}


def _padded(flat: Tensor, counts: list[int]) -> Scores:
    parts = flat.float().cpu().split(counts)
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=torch.nan).numpy()


def _captions(context: Context) -> list[list[str]]:
    evalset = context.evalset
    require(
        evalset.task in ("retrieval", "pairs"),
        f"evaluation set {evalset.name}: task pairs needs images with a right and a wrong caption, and it has classes",
    )
    for position, own in enumerate(context.texts):
        if len(own) < 2:
            raise DataError(
                f"evaluation set {evalset.name}: {evalset.records.key(position)}: one caption; task pairs expects the "
                "right one and after it the wrong ones"
            )
    same = [position for position, own in enumerate(context.texts) if own[0] in own[1:]]
    if same:
        LOG.warning(
            "evaluation set %s: in %d of %d images the right caption is also among the wrong ones, first %s",
            *(evalset.name, len(same), len(context.texts), evalset.records.key(same[0])),
        )
    return context.texts


def _examples(evalset: EvalSet) -> list[int] | None:
    """Return the example of each image in Winoground's form; None in SugarCrepe's."""
    records = evalset.records
    found = [pair.example for pair in records.samples] if isinstance(records, PairRecords) else []
    examples = [example for example in found if example is not None]
    if not examples:
        return None
    whole = examples[::2] == examples[1::2] and len(set(examples)) * 2 == len(records)
    if not whole:
        raise DataError(f"evaluation set {evalset.name}: expected both images of every example, one after the other")
    return examples


def _kinds(evalset: EvalSet, examples: list[int] | None) -> dict[str, list[int]]:
    """Return the rows or examples of each kind, in the order in which kinds occur."""
    if not isinstance(evalset.records, PairRecords):
        return {}
    found: dict[str, list[int]] = {}
    for row, pair in enumerate(evalset.records.samples[:: 1 if examples is None else 2]):
        for kind in pair.kinds:
            found.setdefault(kind, []).append(row)
    return found


def _warn_of_ties(evaluation: Evaluation, model: str, name: str) -> None:
    differing = [
        f"{metric} {evaluation.metrics[metric]:.4f}, with ties against it {value:.4f}"
        for metric, value in evaluation.pessimistic.items()
        if metric in evaluation.metrics and value != evaluation.metrics[metric]
    ]
    if differing:
        LOG.warning("evaluation set %s: ties change what model %s scores: %s", name, model, "; ".join(differing))
