"""The result of an evaluation, and the unit of each figure."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from numpy.typing import NDArray

_MAIN = re.compile(
    r"(lp_|finetune_|corruption_)?acc1|(knn|occlusion)_acc1@.+|mean_average_precision"
    r"|((reranked_)?image|text)_retrieval_recall@1|instance_(medium_|hard_)?map|(text_|image_)?acc"
)


def is_main(name: str) -> bool:
    """Return whether a figure is one of the main metrics of its task.

    Args:
        name: name of the figure. The name of a set may come before it, as in `SET/METRIC`.
    """
    return _MAIN.fullmatch(name.rpartition("/")[2]) is not None


class Evaluation(NamedTuple):
    """The figures of one model at one task of one set.

    Attributes:
        metrics: metrics by name, shares in [0, 1] of which more is better.
        chance: their chance levels by name. Studies compare the metrics that have a chance level.
        outcomes: arrays with the outcome of each sample or query.
        further: other figures by name (ranks, mAP@k), which have no chance level.
        pessimistic: figures that ties can change, by name, with everything that ties with the right answer before it.
        details: further content of the results' JSON, such as chosen hyper-parameters.
        tables: tables by name, rows of cells with their head first, written as CSV files next to the outcomes.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    outcomes: dict[str, NDArray]
    further: Mapping[str, float] = MappingProxyType({})
    pessimistic: Mapping[str, float] = MappingProxyType({})
    details: Mapping[str, Any] = MappingProxyType({})
    tables: Mapping[str, Sequence[Sequence[str]]] = MappingProxyType({})


def is_rank(name: str) -> bool:
    """Return whether a figure is a rank, counted from 1; all others are shares in [0, 1].

    Args:
        name: the figure's name, or `SET/METRIC`.
    """
    return name.endswith("_rank")


def number(name: str, value: float, digits: int = 2) -> str:
    """Return a figure as a table shows it: a share in percent, a rank as it is.

    Args:
        name: see `is_rank`.
        value: the figure.
        digits: decimals of a share.
    """
    return f"{value:.1f}" if is_rank(name) else f"{100 * value:.{digits}f}"


def shown(name: str, value: float, digits: int = 2) -> str:
    """Return a figure with its unit, as a sentence shows it; see `number`."""
    return number(name, value, digits) + ("" if is_rank(name) else "%")
