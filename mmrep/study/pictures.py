"""Pictures for a study's report: test images that all seeds of one arm answer right and all of another one wrong."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mmrep import distributed
from mmrep.config.checks import ConfigError, MmrepError
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
from mmrep.study.diff import outcome_arrays
from mmrep.study.plan import PlannedRun
from mmrep.study.results import Picture, PictureSet
from mmrep.study.shots import chosen, data_uri, heat_maps, picture_of
from mmrep.training.output import FINAL, OUTCOMES, PICTURES

LOG = logging.getLogger("mmrep")

MOST = 8
"""Pictures in one set."""
BUDGET = 240
"""Small pictures in all, each of about 5 kB: the report stays below 3 MB."""
SHOTS = 3
"""Small pictures of one item: an image and two heat maps, or six images of half the size."""
TOP, TOP_SIDE = 3, 96


class Group(NamedTuple):
    """The queries that all seeds of one arm answer right and all of another one wrong.

    Attributes:
        winner: label of the arm that is right.
        loser: label of the arm that is wrong.
        seeds: number of seeds.
        rows: all such queries.
        runs: by label, the run of the first seed whose models are kept; none where no models are.
        outcomes: by label, the outcomes of that seed, or of the first one.
    """

    winner: str
    loser: str
    seeds: list[int]
    rows: list[int]
    runs: dict[str, PlannedRun]
    outcomes: dict[str, dict[str, NDArray]]


def write_pictures(config: CompareConfig, runs: Sequence[PlannedRun]) -> None:
    """Write pictures.json into a study's folder, unless the study asks for no pictures. This is a collective."""
    wanted = config.study.diagnostics
    if not wanted.images or not wanted.pictures or not runs:
        return
    try:
        sets = study_pictures(config, runs)
    except (MmrepError, RuntimeError, OSError) as error:
        LOG.warning("no pictures of where the heads differ: %s", " ".join(str(error).split()))
        return
    if distributed.rank() == 0:
        write_json(Path(config.output_dir) / PICTURES, {"schema": 1, "sets": sets}, indent=1)


def study_pictures(config: CompareConfig, runs: Sequence[PlannedRun]) -> list[PictureSet]:
    """Return, for each contrast of a study, the images that all seeds of one arm get right and all of the other wrong.

    The first set with one class an image is shown, and the first with captions, whose texts are the queries. Of more
    than MOST images some are drawn at random, always the same ones. Answers, ranks and heat maps are those of the
    first seed whose models are kept. This is a collective: call it on every process.

    Args:
        config: the study.
        runs: finished runs.

    Raises:
        MmrepError: a set, a model or outcomes that can't be read.
    """
    found: list[PictureSet] = []
    for evalset in shown_sets(config.evaluation.sets):
        pairs = [pair for a, b, _ in config.study.contrasts() for pair in ((a, b), (b, a))]
        groups = [each for a, b in pairs if (each := _group(runs, evalset, a, b)) is not None]
        fitting = BUDGET // 2 // SHOTS
        most = max(1, min(MOST, fitting // max(1, len(groups))))
        make = _retrieved if evalset.task == "retrieval" else _classified
        if len(groups) > fitting:
            LOG.info(
                "pictures of %s: the first %d contrasts of %d are shown", evalset.name, fitting // 2, len(groups) // 2
            )
        found += make(groups[:fitting], evalset, config, most)
    return found


def shown_sets(sets: Sequence[SetConfig]) -> list[EvalSet]:
    """Return the first set with one class an image and the first with captions, of those with these tasks."""
    found: dict[str, EvalSet] = {}
    for config in sets:
        evalset = None if opened_by_task(config) else open_set(config)
        if evalset and not evalset.multilabel and evalset.task in (evalset.tasks or (evalset.task,)):
            found.setdefault(evalset.task, evalset)
    return list(found.values())


def _group(runs: Sequence[PlannedRun], evalset: EvalSet, winner: str, loser: str) -> Group | None:
    """Return where one arm wins; None where no seed of both arms is finished."""
    folders = {label: {run.seed: run for run in runs if run.pool == label} for label in (winner, loser)}
    seeds = [seed for seed in folders[winner] if seed in folders[loser]]
    if not seeds:
        return None
    outcomes = {label: [_outcomes(folders[label][seed], evalset) for seed in seeds] for label in folders}
    right = {label: np.array([_right(each) for each in outcomes[label]]) for label in folders}
    rows = np.flatnonzero(right[winner].all(0) & ~right[loser].any(0)).tolist()
    kept = [i for i, seed in enumerate(seeds) if all((own[seed].folder / FINAL).is_dir() for own in folders.values())]
    own = {label: folders[label][seeds[kept[0]]] for label in folders} if kept else {}
    return Group(winner, loser, seeds, rows, own, {label: outcomes[label][(kept or [0])[0]] for label in folders})


def _outcomes(run: PlannedRun, evalset: EvalSet) -> dict[str, NDArray]:
    place = run.folder / OUTCOMES / model_folder(run.folder.name) / f"{evalset.name}.npz"
    found = outcome_arrays(place)
    if found["keys"].tolist() != evalset.keys():
        raise ConfigError(f"{place}: set {evalset.name} has other samples now than when {run.name} was evaluated")
    return found


def _right(outcomes: dict[str, NDArray]) -> NDArray[np.bool_]:
    """Return whether each image is classified right, or the right image found first for each text."""
    return outcomes["position"] == 1 if "position" in outcomes else outcomes["image_hits"][:, 0]


def _title(group: Group, shown: int, total: int, unit: str, verbs: tuple[str, str]) -> str:
    """Return a title that says how often the case occurs and how the pictures were chosen."""
    count = len(group.rows)
    seeds = f"in all {len(group.seeds)} seeds" if len(group.seeds) > 1 else f"with seed {group.seeds[0]}"
    title = f"{verbs[0]} {group.winner}, {verbs[1]} {group.loser} {seeds}"
    if not count:
        return f"{title}: none of {total:,} {unit}"
    drawn = f", {shown} of them drawn at random" if shown < count else ""
    return f"{title}: {count:,} of {total:,} {unit}{drawn}"


def _classified(groups: Sequence[Group], evalset: EvalSet, config: CompareConfig, most: int) -> list[PictureSet]:
    """Return groups of classified images, with the patch weights and answers of both arms."""
    del config
    rows = [chosen(group.rows, most) for group in groups]
    maps: dict[tuple[Path, int], str] = {}
    for run, needed in _models(groups, rows):
        drawn = heat_maps(_load(run), evalset.records, needed)
        maps |= {(run.folder, row): data_uri(each) for row, each in zip(needed, drawn, strict=False)}
    images = {row: data_uri(picture_of(evalset.records, row)) for own in rows for row in own}
    found: list[PictureSet] = []
    for group, own in zip(groups, rows, strict=True):
        items: list[Picture] = []
        for row in own:
            names = {label: evalset.classnames[each["predicted"][row]] for label, each in group.outcomes.items()}
            item: Picture = {"caption": evalset.classnames[evalset.records.label(row)], "answers": names}
            own_maps = {x: maps[run.folder, row] for x, run in group.runs.items() if (run.folder, row) in maps}
            item |= {"image": images[row], "maps": own_maps}
            items.append(item)
        total, unit = len(evalset.records), f"images of {evalset.name}"
        title = _title(group, len(own), total, unit, ("Right with", "wrong with"))
        found.append({"title": title, "a": group.winner, "b": group.loser, "kind": "classification", "items": items})
    return found


def _retrieved(groups: Sequence[Group], evalset: EvalSet, config: CompareConfig, most: int) -> list[PictureSet]:
    """Return groups of texts, with the images that both arms find first and the rank of the right one."""
    texts, _ = flat_captions([evalset.records.texts(position) for position in range(len(evalset.records))])
    rows = [chosen(group.rows, most) for group in groups]
    tops: dict[tuple[Path, int], list[int]] = {}
    for run, needed in _models(groups, rows):
        first = _first_images(_load(run), evalset, [texts[row] for row in needed], config)
        tops |= {(run.folder, row): each for row, each in zip(needed, first, strict=True)}
    seen = dict.fromkeys(row for each in tops.values() for row in each)
    images = {row: data_uri(picture_of(evalset.records, row, TOP_SIDE)) for row in seen}
    found: list[PictureSet] = []
    for group, own in zip(groups, rows, strict=True):
        items: list[Picture] = [
            {
                "query": texts[row],
                "right": {label: int(each["image_position"][row]) - 1 for label, each in group.outcomes.items()},
                "tops": {x: [images[i] for i in tops[run.folder, row]] for x, run in group.runs.items()},
            }
            for row in own
        ]
        title = _title(group, len(own), len(texts), f"texts of {evalset.name}", ("Found first by", "not by"))
        found.append({"title": title, "a": group.winner, "b": group.loser, "kind": "retrieval", "items": items})
    return found


def _models(groups: Sequence[Group], rows: Sequence[list[int]]) -> Iterator[tuple[PlannedRun, list[int]]]:
    """Yield every run whose model is needed, and the queries that it is needed for, so that each is loaded once."""
    needed: dict[Path, tuple[PlannedRun, set[int]]] = {}
    for group, own in zip(groups, rows, strict=True):
        for run in group.runs.values() if own else ():
            needed.setdefault(run.folder, (run, set()))[1].update(own)
    for run, every in needed.values():
        yield run, sorted(every)


def _load(run: PlannedRun) -> DualEncoder:
    return load(run.folder, "cuda" if torch.cuda.is_available() else "cpu")


def _first_images(model: DualEncoder, evalset: EvalSet, queries: list[str], config: CompareConfig) -> list[list[int]]:
    """Return the rows of the TOP images that a model finds first for each text."""
    options = config.evaluation
    cache = EmbeddingCache() if options.cache else None
    (images,) = embed_set_cached([model], evalset.records, options, cache, evalset.name)
    embedded = embed_texts_cached(model, queries, options.text_batch_size, cache)
    found: list[list[int]] = nearest(embedded, images, min(TOP, len(images)))[1].tolist()
    return found
