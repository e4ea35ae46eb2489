"""Search with every head of a study: the images that each finds for a text, the texts that each ranks first."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mmrep.config.checks import ConfigError, one_of, require
from mmrep.config.tree import CompareConfig
from mmrep.evaluation.context import Context
from mmrep.evaluation.embedding.cache import EmbeddingCache
from mmrep.evaluation.embedding.embed import centre_of
from mmrep.evaluation.scoring.classification import class_embeddings
from mmrep.evaluation.scoring.nearest import nearest
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.evaluation.sources.check import opened_by_task
from mmrep.evaluation.tasks.zeroshot import prompts
from mmrep.model.load import load
from mmrep.pixels import rgb
from mmrep.study.collect import finished_runs, read_study
from mmrep.study.plan import PlannedRun
from mmrep.study.shots import drawn, heat_maps, picture_of
from mmrep.training.output import FINAL

LOG = logging.getLogger("mmrep")


class Hit(NamedTuple):
    """An image that a head finds for a text.

    Attributes:
        text: its class, or its first caption.
        score: cosine with the text.
        picture: the image.
        map: which patches support the text; None where that can't be computed.
    """

    text: str
    score: float
    picture: Image.Image
    map: Image.Image | None


class Description(NamedTuple):
    """What a head answers for an image.

    Attributes:
        answers: texts and their cosines, the best first.
        map: which patches support the first text; None where that can't be computed.
    """

    answers: list[tuple[str, float]]
    map: Image.Image | None


class Explorer:
    """The heads of a study, with the embeddings of one of its sets, which are computed when it is made.

    Args:
        context: the models by the labels of their arms, and the set.
        seed: the seed that the models were trained with.

    Attributes:
        name: name of the set.
        models: the models by the labels of their arms.
        texts: the classes of the set, or its captions.
    """

    def __init__(self, context: Context, seed: int) -> None:
        self.context, self.seed = context, seed
        self.models, self.name = context.models, context.evalset.name
        self._captions = _captions(context)
        self.texts = context.evalset.classnames or list(dict.fromkeys(own for each in context.texts for own in each))
        self._images = dict(zip(self.models, context.images, strict=True))
        self._texts = _text_embeddings(context, self.texts)

    @torch.inference_mode()
    def find(self, text: str, count: int = 5) -> dict[str, list[Hit]]:
        """Return, for each head, the images nearest to a text, the nearest first.

        Args:
            text: what to search for.
            count: number of images.

        Raises:
            ConfigError: the text is empty.
        """
        require(bool(text.strip()), "type a text to search for")
        records, found = self.context.evalset.records, {}
        for label, model in self.models.items():
            (query,) = self.context.encode_texts(model, [text])
            scores, rows = nearest(query[None], self._images[label], min(count, len(records)))
            own = rows[0].tolist()
            maps = [*heat_maps(model, records, own, query.to(model.device)), *[None] * len(own)]
            found[label] = [
                Hit(self._captions[row], score, picture_of(records, row), drawing)
                for row, score, drawing in zip(own, scores[0].tolist(), maps, strict=False)
            ]
        return found

    @torch.inference_mode()
    def describe(self, picture: Image.Image | None, count: int = 5) -> dict[str, Description]:
        """Return, for each head, the classes or captions of the set that are nearest to an image, the nearest first.

        Args:
            picture: a picture of any size.
            count: number of texts.

        Raises:
            ConfigError: there is no picture, or its pixels have no agreed range.
        """
        if picture is None:
            raise ConfigError("drop in a picture to describe")
        try:
            pixels = torch.from_numpy(rgb(picture)).permute(2, 0, 1)
        except ValueError as error:
            raise ConfigError(f"the picture can't be read: {error}") from error
        found = {}
        for label, model in self.models.items():
            image = centre_of(model)(pixels, 0)[None]
            query = model.encode_image(image.to(model.device)).cpu()
            scores, rows = nearest(query, self._texts[label], min(count, len(self.texts)))
            answers = [
                (self.texts[row], score) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            ]
            maps = drawn(model, image, self._texts[label][rows[0, 0]].to(model.device))
            found[label] = Description(answers, maps[0] if maps else None)
        return found


def _captions(context: Context) -> list[str]:
    """Return the class or the first caption of every image."""
    names = context.evalset.classnames
    return [names[label] for label in context.labels] if names else [own[0] for own in context.texts]


def _text_embeddings(context: Context, texts: list[str]) -> dict[str, Float[Tensor, "texts embed"]]:
    """Return the embeddings of the classes, through the set's templates, or of the captions."""
    found = {}
    for label, model in context.models.items():
        if context.evalset.classnames:
            found[label] = class_embeddings(context.encode_texts(model, prompts(context.evalset)), len(texts))
        else:
            found[label] = context.encode_texts(model, texts)
    return found


def open_study(folder: Path, name: str | None = None, device: str = "cpu", quiet: bool = True) -> Explorer:
    """Load the models of a study's first seed, and embed one of its sets.

    Args:
        folder: the folder of a study.
        name: name of the set. By default the first with one class an image or captions.
        device: where the models run.
        quiet: show no progress bar.

    Raises:
        ConfigError: no study, no finished run whose model is kept, or no such set.
        DataError: an image that can't be read.
    """
    config, runs = kept_runs(folder)
    evalset = _chosen_set(config, name)
    LOG.info("seed %d: %s; embedding %s", runs[0].seed, ", ".join(run.pool for run in runs), evalset.name)
    models = {run.pool: load(run.folder, device) for run in runs}
    cache = EmbeddingCache() if config.evaluation.cache else None
    return Explorer(Context(models, evalset, config.evaluation, quiet, cache), runs[0].seed)


def kept_runs(folder: Path) -> tuple[CompareConfig, list[PlannedRun]]:
    """Return a study and the finished runs of the first seed whose models are kept.

    Raises:
        ConfigError: the folder holds no study, or no such run.
    """
    require(folder.is_dir(), f"{folder}: no such folder")
    config = read_study(folder)
    if config is None:
        raise ConfigError(f"{folder}: no study with runs in it, as `mmrep compare` and `mmrep screen` make them")
    every = [run for run in finished_runs(config) if (run.folder / FINAL).is_dir()]
    require(bool(every), f"{folder}: no run of this study is finished yet, or its model is gone: continue the study")
    runs = [run for run in every if run.seed == every[0].seed]
    missing = [arm.label for arm in config.study.arms() if arm.label not in {run.pool for run in runs}]
    if missing:
        LOG.warning("seed %d has no finished model of %s", runs[0].seed, ", ".join(missing))
    return config, runs


def _chosen_set(config: CompareConfig, name: str | None) -> EvalSet:
    named: Mapping[str, object] = {each.result_name: each for each in config.evaluation.sets}
    require(bool(named), "the study has no evaluation.sets to search in")
    if name is not None:
        one_of("--set", name, named)
    for each in config.evaluation.sets:
        if name in (None, each.result_name) and not opened_by_task(each):
            evalset = open_set(each)
            if evalset.task in ("zeroshot", "retrieval") and not evalset.multilabel:
                return evalset._replace(tasks=())
    raise ConfigError(f"{name or 'evaluation.sets'}: no set with captions, or with one class an image")
