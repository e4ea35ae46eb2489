"""The input of a task: the models, a set, and the set's embeddings, which all tasks of the set share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property

from jaxtyping import Float
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.config.evaluation import EvaluationConfig
from mmrep.evaluation.embedding.cache import EmbeddingCache, embed_set_cached, embed_texts_cached, require_finite
from mmrep.evaluation.embedding.embed import warn_of_cut
from mmrep.evaluation.metrics import Evaluation
from mmrep.evaluation.sets import EvalSet, open_set
from mmrep.model.dual_encoder import DualEncoder


class Context:
    """A set and the models to evaluate on it. Embeddings, labels and captions are computed when first used, and kept.

    Args:
        models: models by name, in evaluation mode, on one device.
        evalset: the set.
        config: batch sizes, workers, tasks' options.
        quiet: show no progress bars.
        cache: where embeddings are stored and looked up.
    """

    def __init__(
        self,
        models: Mapping[str, DualEncoder],
        evalset: EvalSet,
        config: EvaluationConfig,
        quiet: bool = True,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.models = dict(models)
        self.evalset = evalset
        self.config = config
        self.quiet = quiet
        self.cache = cache
        self._asked: set[tuple[int, int]] = set()

    @cached_property
    def labels(self) -> list[int]:
        """The class of each image."""
        return [self.evalset.records.label(position) for position in range(len(self.evalset.records))]

    @cached_property
    def texts(self) -> list[list[str]]:
        """The captions of each image."""
        return [self.evalset.records.texts(position) for position in range(len(self.evalset.records))]

    @cached_property
    def images(self) -> list[Float[Tensor, "images embed"]]:
        """The image embeddings of every model, of unit length, on the CPU.

        Raises:
            MmrepError: embeddings that are not finite.
        """
        found = embed_set_cached(
            list(self.models.values()), self.evalset.records, self.config, self.cache, self.evalset.name, self.quiet
        )
        for name, images in zip(self.models, found, strict=True):
            require_finite(images, name, f"embeddings on {self.evalset.name}")
        return found

    def encode_texts(self, model: DualEncoder, texts: list[str]) -> Float[Tensor, "texts embed"]:
        """Return text embeddings of unit length, in the order given; warn of texts that are longer than the context.

        Raises:
            MmrepError: embeddings that are not finite.
        """
        name = next((name for name, each in self.models.items() if each is model), "")
        asked = (model.tokenizer.context_length, hash(tuple(texts)))
        if asked not in self._asked:
            self._asked.add(asked)
            alike = [own for own, each in self.models.items() if each.tokenizer.context_length == asked[0]]
            warn_of_cut(texts, model.tokenizer, self.evalset.name, alike)
        found = embed_texts_cached(model, texts, self.config.text_batch_size, self.cache)
        require_finite(found, name, f"text embeddings on {self.evalset.name}")
        return found

    @cached_property
    def train(self) -> "Context":
        """The training split of the set with the same models, for tasks that are fitted.

        Raises:
            ConfigError: the set has no training split.
        """
        config = self.evalset.config
        if config is None:
            raise ConfigError(f"evaluation set {self.evalset.name}: no training split: it was held out of training")
        split = open_set(replace(config, split=config.train_split))
        split = split._replace(name=f"{self.evalset.name}/{config.train_split}")
        return Context(self.models, split, self.config, self.quiet, self.cache)


TaskFunction = Callable[[Context], list[Evaluation]]
"""A task on one set: it returns an evaluation for each model, in their order."""
