"""Pictures for a study's report: test images that all seeds of one arm answer right and all of another one wrong."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmrep.config.checks import MmrepError
from mmrep.config.evaluation import SetConfig
from mmrep.config.tree import CompareConfig
from mmrep.evaluation.embedding.cache import EmbeddingCache, embed_set_cached, embed_texts_cached
from mmrep.evaluation.outcome_names import model_folder
from mmrep.evaluation.scoring.nearest import nearest
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.check import opened_by_task
from mmrep.evaluation.tasks.retrieval import flat_captions
from mmrep.files import write_json
from mmrep.model.dual_encoder import DualEncoder
from mmrep.model.load import load
from mmrep.study.diff import read_outcomes
from mmrep.study.plan import PlannedRun
from mmrep.study.results import Picture, PictureSet
from mmrep.study.shots import chosen, data_uri, heat_maps, picture_of
from mmrep.training.output import FINAL, OUTCOMES, PICTURES

LOG = logging.getLogger("mmrep")

MOST = 8
"""Pictures in one set."""
BUDGET = 240
"""Small pictures in all, each of about 5 kB: the report stays below 3 MB."""
TOP = 3


class Arms(NamedTuple):
    """Two arms of a contrast on one set.

    Attributes:
        names: their labels.
        outcomes: for each arm, the outcomes of its seeds, in one order.
        runs: for each arm, its run with a model, of the same seed.
    """

    names: tuple[str, str]
    outcomes: tuple[list[dict[str, NDArray]], list[dict[str, NDArray]]]
    runs: tuple[PlannedRun, PlannedRun] | None

    def only(self, arm: int, retrieval: bool) -> list[int]:
        """Return the queries that all seeds of an arm, 0 or 1, answer right and all of the other arm wrong."""
        mine, other = ([_right(each, retrieval) for each in self.outcomes[i]] for i in (arm, 1 - arm))
        found: list[int] = np.flatnonzero(np.all(mine, 0) & ~np.any(other, 0)).tolist()
        return found


def write_pictures(config: CompareConfig, runs: Sequence[PlannedRun]) -> None:
    """Write pictures.json into a study's folder, unless the study asks for no pictures."""
    wanted = config.study.diagnostics
    if not wanted.images or not wanted.pictures or not runs:
        return
    try:
        sets = study_pictures(config, runs)
    except (MmrepError, RuntimeError, OSError) as error:
        LOG.warning("no pictures of where the heads differ: %s", " ".join(str(error).split()))
        return
    write_json(Path(config.output_dir) / PICTURES, {"schema": 1, "sets": sets})


def study_pictures(config: CompareConfig, runs: Sequence[PlannedRun]) -> list[PictureSet]:
    """Return, for each contrast of a study, the images that all seeds of one arm get right and all of the other wrong.

    The first set with one class an image is shown, and the first with captions, whose texts are the queries. Of more
    than MOST images some are drawn at random, always the same ones. Answers, ranks and heat maps are those of the
    first seed whose models are kept.

    Args:
        config: the study.
        runs: finished runs.

    Raises:
        MmrepError: a set or a model that can't be read.
    """
    found = []
    for evalset in shown_sets(config.evaluation.sets):
        pairs = [each for a, b, _ in config.study.contrasts() if (each := _arms(runs, evalset, a, b)) is not None]
        show = _Shown(config, evalset)
        for arms in pairs:
            found += show.both_ways(arms, _share(len(pairs), evalset.task == "retrieval"))
    return found


def _share(pairs: int, retrieval: bool) -> int:
    """Return how many pictures a set may have, so that all of one kind stay within half of BUDGET."""
    shots = 2 * TOP if retrieval else 3
    return max(1, min(MOST, BUDGET // 2 // max(1, 2 * pairs * shots)))


def shown_sets(sets: Sequence[SetConfig]) -> list[EvalSet]:
    """Return the first set with one class an image and the first with captions, if they are evaluated as such."""
    found: dict[str, EvalSet] = {}
    for config in sets:
        if opened_by_task(config):
            continue
        evalset = open_set(config)
        own = evalset.task in ("auto", *(evalset.tasks or (evalset.task,)))
        if own and not evalset.multilabel:
            found.setdefault(evalset.task, evalset)
    return list(found.values())
