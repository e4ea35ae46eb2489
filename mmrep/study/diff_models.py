"""Two models evaluated in one pass over a set: their joined answers, and a contact sheet where they differ."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mmrep.config.checks import require
from mmrep.evaluation.context import Context
from mmrep.evaluation.scoring.nearest import nearest
from mmrep.evaluation.tasks.retrieval import flat_captions, retrieval
from mmrep.evaluation.tasks.zeroshot import zeroshot
from mmrep.study.contact_sheet import Tile, contact_sheet
from mmrep.study.diff import TITLES, Joined, join
from mmrep.study.shots import chosen, heat_maps, picture_of

SIDE = 128
SHOWN = 12
"""Samples of each kind on a contact sheet."""
MAPS_NOTE = (
    "Colours over a grey image: what each patch adds to the image embedding (red) or takes away from it (blue). "
    "No colours: the head does not read the patches."
)


class Answers(NamedTuple):
    """The joined answers to one kind of query.

    Attributes:
        joined: the answers.
        images: for each query, the row of its image.
        firsts: for each model, the row of the image that it returns first, for text queries.
    """

    joined: Joined
    images: list[int]
    firsts: tuple[list[int], list[int]] | None = None


@torch.inference_mode()
def answers_of(context: Context) -> list[Answers]:
    """Return the answers of two models to the queries of a set, in the set's own task.

    Args:
        context: a set and two models.

    Raises:
        ConfigError: a set with neither one class an image nor captions.
        DataError: a sample that can't be read.
        MmrepError: embeddings that are not finite.
    """
    evalset = context.evalset
    usable = evalset.task in ("zeroshot", "retrieval") and not evalset.multilabel
    require(usable, f"evaluation set {evalset.name}: diff needs captions, or one class an image")
    task = zeroshot if evalset.task == "zeroshot" else retrieval
    keys = np.array(evalset.keys())
    a, b = ({"keys": keys, **each.outcomes} for each in task(context))
    joined = join(evalset.name, a, b, evalset.classnames)
    if evalset.task == "zeroshot":
        return [Answers(joined[0], list(range(len(evalset.records))))]
    texts, owner = flat_captions(context.texts)
    embedded = [context.encode_texts(model, texts) for model in context.models.values()]
    pairs = list(zip(context.images, embedded, strict=True))
    images = [nearest(own, gallery, 1)[1][:, 0].tolist() for gallery, own in pairs]
    found = [nearest(gallery, own, 1)[1][:, 0].tolist() for gallery, own in pairs]
    names = evalset.keys()
    by_text = joined[0]._replace(labels=texts, answers=([names[i] for i in images[0]], [names[i] for i in images[1]]))
    by_image = joined[1]._replace(
        labels=[own[0] for own in context.texts], answers=([texts[i] for i in found[0]], [texts[i] for i in found[1]])
    )
    return [
        Answers(by_text, owner.tolist(), (images[0], images[1])),
        Answers(by_image, list(range(len(names)))),
    ]


@torch.inference_mode()
def sheet(answers: Answers, context: Context) -> Image.Image | None:
    """Draw queries that only one model answers right, SHOWN for each at random; None if there are none.

    Next to a classified image stand the patch weights of both models, next to a text the image that each finds first.

    Raises:
        DataError: an image that can't be read.
    """
    joined, parts = answers.joined, []
    names = list(context.models)
    for model, name in enumerate(names):
        every = joined.only(model)
        rows = chosen(every.tolist(), SHOWN)
        some = f", {len(rows)} of them at random" if len(rows) < len(every) else ""
        title = f"only {name} right: {len(every)} of {len(joined.keys)} {TITLES[joined.way][1]}{some}"
        parts.append((title, _tiles(answers, context, rows, names)))
    if not any(tiles for _, tiles in parts):
        return None
    return contact_sheet(parts, SIDE, MAPS_NOTE if answers.firsts is None else "")


def _tiles(answers: Answers, context: Context, rows: list[int], names: Sequence[str]) -> list[Tile]:
    joined, records, tiles = answers.joined, context.evalset.records, []
    images = [answers.images[row] for row in rows]
    maps = []
    if answers.firsts is None:
        maps = [heat_maps(model, records, images, side=SIDE) for model in context.models.values()]
    for number, (row, image) in enumerate(zip(rows, images, strict=True)):
        pictures = [("image", picture_of(records, image, SIDE))]
        if answers.firsts is None:
            pictures += [(name, own[number]) for name, own in zip(names, maps, strict=True) if own]
            lines = [joined.labels[row], *(f"{n}: {own[row]}" for n, own in zip(names, joined.answers, strict=True))]
        else:
            firsts = [own[row] for own in answers.firsts]
            pictures = [("right", pictures[0][1])]
            pictures += [(n, picture_of(records, first, SIDE)) for n, first in zip(names, firsts, strict=True)]
            lines = [joined.labels[row]]
        tiles.append(Tile(pictures, lines))
    return tiles
