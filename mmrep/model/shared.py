"""Models that share frozen towers and differ in the head: the towers run once for all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmrep.config.checks import ConfigError
from mmrep.config.pooling import PoolConfig
from mmrep.model.dual_encoder import DualEncoder
from mmrep.pooling.contract import Tokens

OWN = ("image.pool.", "image.projection.", "image.auxiliary_projections.", "logit_")
"""What each model has for itself, besides the text tower's projection. Everything else is shared and frozen."""
TEXT_PROJECTION = "text.tower.text_projection"


def with_heads(
    base: DualEncoder, pools: Sequence[PoolConfig], seeds: Sequence[int], build: Callable[..., DualEncoder]
) -> list[DualEncoder]:
    """Return a model for each head. They share the towers of `base`, whose tokens are computed once for a batch.

    Heads, projections and logit scales are each model's own and start fresh; the projection of the texts starts from
    that of `base`, on towers whose texts can be cut. All other parameters are those of `base` and need no gradients.

    Args:
        base: the model whose towers are shared.
        pools: the heads.
        seeds: seed of each head's initial values.
        build: makes a model like `base` from a head and a seed.

    Raises:
        ConfigError: a head that does not fit the trunk.
    """
    base.eval().requires_grad_(False)
    models = [build(pool, seed).to(base.device) for pool, seed in zip(pools, seeds, strict=True)]
    shared = SharedTokens(base, models)
    texts = _Once(base.text.features)
    for model in models:
        _share(model, base)
        model.precision = base.precision
        model.image.tokens = partial(shared, model.image.stage_blocks)  # type: ignore[method-assign]
        model.text.features = texts  # type: ignore[method-assign, assignment]
    return models


def _share(model: DualEncoder, base: DualEncoder) -> None:
    """Put the parameters and buffers of `base` in the place of the model's, all but its own."""
    theirs: dict[str, Any] = {**dict(base.named_parameters()), **dict(base.named_buffers())}
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if name.startswith(OWN):
            continue
        if name not in theirs or theirs[name].shape != parameter.shape:
            raise ConfigError(f"the trunk has no {name} of shape {tuple(parameter.shape)}")
        place, _, leaf = name.rpartition(".")
        if name.startswith(TEXT_PROJECTION) and model.text.cuttable:
            with torch.no_grad():
                parameter.copy_(theirs[name])
        else:
            setattr(model.get_submodule(place), leaf, theirs[name])


class _Once:
    """A function of one tensor without gradients. It is computed once for models that pass the same tensor in turn."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        self._compute = compute
        self._key: tuple[Any, ...] = ()
        self._value: Any = None

    def __call__(self, tensor: Tensor, *more: Any) -> Any:
        if len(self._key) != 1 + len(more) or any(a is not b for a, b in zip(self._key, (tensor, *more), strict=True)):
            with torch.no_grad():
                self._key, self._value = (tensor, *more), self._compute(tensor, *more)
        return self._value


class SharedTokens:
    """The trunk's tokens of a batch for heads that may ask for earlier depths.

    Args:
        base: the model that has the trunk.
        models: the models that share it.
    """

    def __init__(self, base: DualEncoder, models: Sequence[DualEncoder]) -> None:
        self._blocks = sorted({block for model in models for block in model.image.stage_blocks})
        base.image.stage_blocks = tuple(self._blocks)
        self._once = _Once(base.image.tokens)

    def __call__(self, blocks: Sequence[int], images: Tensor, kept: Tensor | None = None) -> Tokens:
        """Return the tokens, with the stages after these blocks."""
        found: Tokens = self._once(images, kept)
        return found._replace(stages=tuple(found.stages[self._blocks.index(block)] for block in blocks))


@contextmanager
def apart(model: DualEncoder) -> Iterator[None]:
    """Let a model run its towers itself within the context, so that its speed can be measured."""
    kept = model.image.__dict__.pop("tokens"), model.text.__dict__.pop("features")
    try:
        yield
    finally:
        model.image.tokens, model.text.features = kept  # type: ignore[method-assign]
