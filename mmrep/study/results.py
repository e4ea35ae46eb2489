"""The content of a study's results.json, and how to look things up in it. All metric values are shares in [0, 1]."""

from typing import Any, Literal, NotRequired, TypedDict

from mmrep.evaluation.metrics import is_main
from mmrep.study.statistics import Interval, NewImages

RESULTS = "results.json"
SCHEMA = 3
"""Version of the format of results.json. Version 1 had verdicts on every metric, version 2 no contrasts."""

COSTS = ("params", "gmacs", "pairs_per_s", "images_per_s", "peak_mb")

Verdict = Literal["better", "worse", "equivalent", "cannot tell"]


class Run(TypedDict):
    """A finished run. `pool` is the label of its arm: a head and, in a study with axes, the point on them."""

    pool: str
    seed: int
    head: str
    at: dict[str, Any]
    metrics: dict[str, float]
    chance: dict[str, float]
    items: dict[str, int]
    evaluations: NotRequired[int | None]
    cost: dict[str, float]


class Failure(TypedDict):
    """A run that failed, with the message of its error."""

    pool: str
    seed: int
    message: str


class Contrast(TypedDict):
    """A comparison that was registered before the first run. `margin` is a share: smaller differences do not matter."""

    a: str
    b: str
    margin: float | None


class Event(TypedDict):
    """An event in the history of a study, such as seeds that were added later."""

    time: str
    text: str
    changed: NotRequired[list[str]]


class Control(TypedDict):
    """Two arms that must tie, and the reason."""

    a: str
    b: str
    text: str


class DifferenceEntry(TypedDict):
    """The difference a − b in a metric, as statistics.Difference has it."""

    metric: str
    a: str
    b: str
    mean: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    p_holm: float | None
    method: str
    seeds: int
    verdict: Verdict | None
    exploratory: bool
    margin: float | None
    target: float | None
    seeds_needed: int | None
    detectable: float | None
    sd: float | None
    correlation: float | None
    pairing: float | None
    differences: list[float]
    seed_list: list[int]
    new_images: NewImages | None
    these_checkpoints: Interval | None


class TuningRun(TypedDict):
    """A run of the tuning stage: one point of the grid for one arm and seed."""

    pool: str
    at: dict[str, Any]
    seed: int
    value: float


class Tuning(TypedDict):
    """What was tuned for every arm before the study, on seeds of its own."""

    fields: list[str]
    metric: str
    seeds: list[int]
    chosen: dict[str, dict[str, Any]]
    edge: list[str]
    runs: list[TuningRun]


class CurvePoint(TypedDict, total=False):
    """A record of a run's metrics.jsonl."""

    step: int
    loss: float
    lr: float
    logit_scale: float
    exponents: list[float]
    exponent_min: float
    exponent_median: float
    exponent_max: float
    evaluation: dict[str, float]


class Picture(TypedDict):
    """An image that two arms answer differently, or a query of a retrieval set."""

    caption: NotRequired[str]
    query: NotRequired[str]
    image: NotRequired[str]
    maps: NotRequired[dict[str, str]]
    answers: NotRequired[dict[str, str]]
    tops: NotRequired[dict[str, list[str]]]
    right: NotRequired[dict[str, int | None]]


class PictureSet(TypedDict):
    """Pictures where all seeds of `a` are right and all of `b` wrong."""

    title: str
    a: str
    b: str
    kind: NotRequired[Literal["classification", "retrieval"]]
    items: list[Picture]


class Results(TypedDict):
    """The content of results.json."""

    schema: int
    name: str
    kind: Literal["compare", "screen"]
    command: str
    baseline: str
    primary: str | None
    contrasts: list[Contrast]
    planned_seeds: list[int]
    interim: bool
    history: list[Event]
    registered: NotRequired[bool]
    paired: bool
    unpaired_because: str | None
    runs: list[Run]
    failed: list[Failure]
    missing: int
    differences: list[DifferenceEntry]
    controls: list[Control]
    tuning: Tuning | None
    unequal: list[str]
    confidence: float
    batches: dict[str, str]
    patch_tokens: int | None
    preserved: str | None
    mmrep: str
    curves: dict[str, list[CurvePoint]]
    diagnostics: NotRequired[dict[str, Any]]
    pictures: NotRequired[list[PictureSet]]


def pools_of(results: Any) -> list[str]:
    """Return the labels of the arms, in the order of the study."""
    return list(dict.fromkeys(run["pool"] for run in results["runs"]))


def metrics_of(results: Any, primary: bool) -> list[str]:
    """Return the names of all metrics or, if `primary`, of each set's main metrics, where it has any."""
    names = list(dict.fromkeys(name for run in results["runs"] for name in run["metrics"]))
    main = [name for name in names if is_main(name)]
    served = {name.rpartition("/")[0] for name in main}
    return [name for name in names if not primary or name in main or name.rpartition("/")[0] not in served]
