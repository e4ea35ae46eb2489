"""The config of a study, a paired comparison of poolings."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mmrep.config.checks import ConfigError, above, at_least, hint, one_of, quoted, require, within
from mmrep.config.pooling import PoolConfig

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class DiagnosticsConfig:
    """Measurements inside the trained models, on images of the first set with captions or one class an image.

    Attributes:
        images: Images whose activations are measured; 0 leaves all diagnostics out.
        accuracy_images: Images that are classified (or searched) again at other sizes and without their salient
            part.
        pictures: Images whose patch weights are drawn.
        sizes: Image sizes in pixels. By default 3/4, 1, 5/4 and 3/2 of the training size, in whole patches; []
            measures none.
    """

    images: int = 256
    accuracy_images: int = 1000
    pictures: int = 6
    sizes: list[int] | None = None

    def __post_init__(self) -> None:
        at_least("study.diagnostics.images", self.images, 0)
        at_least("study.diagnostics.accuracy_images", self.accuracy_images, 1)
        at_least("study.diagnostics.pictures", self.pictures, 0)
        for size in self.sizes or []:
            at_least("study.diagnostics.sizes", size, 1)


@dataclass(frozen=True)
class PrimaryConfig:
    """What a study claims: its metric, the contrasts in it, and the margin of equivalence. Fixed before the first run.

    Attributes:
        metric: The metric that verdicts are about, as SET/METRIC. By default the first set's main metric. All others
            are exploratory.
        contrasts: The pairs of heads that are judged, each as "ggem - avg" or {contrast: ggem - avg, margin: 0.3}. By
            default every head against the baseline.
        margin: Percentage points within which two heads count as equivalent, for contrasts without a margin of their
            own. null declares no equivalence.
        detect: Percentage points that the number of seeds needed is about, for contrasts without a margin.
        sd: Standard deviation over seeds of a paired difference, in percentage points, that `--dry_run` assumes before
            there are runs to take it from.
    """

    metric: str | None = None
    contrasts: list[str | dict[str, Any]] = field(default_factory=list)
    margin: float | None = None
    detect: float = 0.5
    sd: float = 0.5

    def __post_init__(self) -> None:
        require(
            self.metric is None or "/" in self.metric,
            f"study.primary.metric: expected SET/METRIC, as in cifar10/acc1, got {quoted(self.metric)}",
        )
        above("study.primary.margin", self.margin, 0)
        above("study.primary.detect", self.detect, 0)
        above("study.primary.sd", self.sd, 0)
        pairs = [(each.a, each.b) for each in self.parsed()]
        require(len(set(pairs)) == len(pairs), "study.primary.contrasts: one contrast is given twice")

    def parsed(self) -> "list[Contrast]":
        """Return the contrasts that are given.

        Raises:
            ConfigError: an entry is no contrast of two heads.
        """
        return [self._contrast(entry, f"study.primary.contrasts[{i}]") for i, entry in enumerate(self.contrasts)]

    def _contrast(self, entry: str | dict[str, Any], where: str) -> "Contrast":
        content = {"contrast": entry} if isinstance(entry, str) else entry
        unknown = sorted(set(content) - {"contrast", "margin"})
        require(not unknown, f"{where}: unknown key {quoted(unknown[:1])} (valid: contrast, margin)")
        a, minus, b = str(content.get("contrast", "")).partition(" - ")
        a, b, margin = a.strip(), b.strip(), content.get("margin", self.margin)
        require(
            bool(minus and a and b) and a != b, f"{where}: expected two heads, as in 'ggem - avg', got {quoted(entry)}"
        )
        require(
            margin is None or (isinstance(margin, int | float) and margin > 0),
            f"{where}.margin: expected percentage points > 0, got {quoted(margin)}",
        )
        return Contrast(a, b, None if margin is None else float(margin) / 100)


class Contrast(NamedTuple):
    """A pair of arms that a study judges.

    Attributes:
        a: label of an arm.
        b: label of the arm that it is compared with.
        margin: largest difference that counts as equivalent, a share; None declares no equivalence.
    """

    a: str
    b: str
    margin: float | None = None


@dataclass(frozen=True)
class TuneConfig:
    """Tuning on the validation split. Every head gets the same grid and the same seeds, which the study does not use.

    Attributes:
        values: Options of the recipe and the values to try, as in {optim.lr: [5e-4, 1e-3, 2e-3]}. Several options make
            a full grid. Empty tunes nothing.
        seeds: Seeds of the tuning runs. A value's score is the mean over them.
        metric: Metric of the validation split that is tuned for. By default its main metric.
    """

    values: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [100])
    metric: str | None = None

    def __post_init__(self) -> None:
        _check_grid("study.tune.values", self.values)
        _check_seeds("study.tune.seeds", self.seeds)

    def grid(self) -> list[dict[str, Any]]:
        """Return all combinations of the values."""
        return _points(self.values)


class Arm(NamedTuple):
    """What a study trains once with every seed: a head, at one point of the study's axes.

    Attributes:
        label: its name in folders and tables.
        pool: the head.
        at: the value of each axis.
        head_seed: number added to the seed of the head's and the projection's initial values.
    """

    label: str
    pool: PoolConfig
    at: Mapping[str, Any]
    head_seed: int


def _check_grid(name: str, values: Mapping[str, Any]) -> None:
    for key, each in values.items():
        require(
            isinstance(each, list) and len(each) > 0, f"{name}.{key}: expected a list of values, got {quoted(each)}"
        )
        require(
            all(each.count(value) == 1 for value in each), f"{name}.{key}: a value is given twice in {quoted(each)}"
        )
        require(
            not key.startswith(("study", "output_dir", "resume", "seed", "model.pool")),
            f"{name}.{key}: not an option of the recipe that runs may differ in",
        )


def _check_seeds(name: str, seeds: list[int]) -> None:
    require(len(seeds) > 0, f"{name}: expected at least one seed")
    require(len(set(seeds)) == len(seeds), f"{name}: each seed once, got {seeds}")
    for seed in seeds:
        within(name, seed, 0, LARGEST_SEED)


def _points(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


Varied = Literal["data", "trunk", "head"]


@dataclass(frozen=True)
class StudyConfig:
    """Poolings, seeds, baseline and claim of a study.

    Attributes:
        pools: The heads to compare, each as in model.pool. `head_seed: 1` in an entry starts the same head from other
            values, which shows how much of a difference is noise.
        seeds: Seeds. Every head is trained once with each, and differences are paired by seed. Plan them beforehand: a
            verdict before all are done is marked as interim, and seeds that are added later are recorded.
        vary: What a seed changes: the order and augmentation of the data, the initial values of the trunk (and the
            text tower), those of the head (and the projection). What is left out is fixed by the first seed.
        baseline: Label of the head that the others are compared to. By default avg if it takes part, else the
            first.
        axes: Further options that the runs differ in, with their values, as in {optim.lr: [5e-4, 1e-3]}. Every head
            is trained at every point, and heads are compared at the same point.
        tune: Tuning before the study.
        primary: What the study claims.
        confidence: Level of the confidence intervals.
        diagnostics: Measurements inside the trained models.
    """

    pools: list[str | dict[str, Any]] = field(default_factory=lambda: ["cls", "avg", "ggem"])
    seeds: list[int] = field(default_factory=lambda: [0])
    vary: list[Varied] = field(default_factory=lambda: ["data", "trunk", "head"])
    baseline: str | None = None
    axes: dict[str, list[Any]] = field(default_factory=dict)
    tune: TuneConfig = field(default_factory=TuneConfig)
    primary: PrimaryConfig = field(default_factory=PrimaryConfig)
    confidence: float = 0.95
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    def __post_init__(self) -> None:
        require(len(self.pools) > 0, "study.pools: expected at least one head")
        heads = [str(pool.label) for pool, _ in self.heads()]
        require(len(set(heads)) == len(heads), f"study.pools: two heads share a label ({', '.join(heads)})")
        _check_seeds("study.seeds", self.seeds)
        require(len(self.vary) > 0, "study.vary: expected at least one of data, trunk, head")
        within("study.confidence", self.confidence, 0.5, 0.9999)
        if self.baseline is not None:
            one_of("study.baseline", self.baseline, heads)
        _check_grid("study.axes", self.axes)
        both = self.axes.keys() & self.tune.values.keys()
        require(not both, f"study.tune.values: {', '.join(sorted(both))} is an axis of the study, so nothing to tune")
        shared = sorted(set(self.seeds) & set(self.tune.seeds)) if self.tune.values else []
        require(not shared, f"study.tune.seeds: {shared} are seeds of the study too; tuning needs its own")
        arms = [arm.label for arm in self.arms()]
        require(len(set(arms)) == len(arms), "study.axes: two points would have one name; drop the one that repeats")
        for contrast in self.primary.parsed():
            for label in (contrast.a, contrast.b):
                require(
                    label in arms,
                    f"study.primary.contrasts: no head {quoted(label)}{hint(label, arms)} (valid: {', '.join(arms)})",
                )

    def heads(self) -> list[tuple[PoolConfig, int]]:
        """Return the heads, each with what is added to the seed of its initial values."""
        found = []
        for i, entry in enumerate(self.pools):
            content, shift = entry, 0
            if isinstance(entry, dict) and "head_seed" in entry:
                shift = entry["head_seed"]
                content = {key: value for key, value in entry.items() if key != "head_seed"}
                if not isinstance(shift, int) or isinstance(shift, bool) or shift < 0:
                    raise ConfigError(f"study.pools[{i}].head_seed: expected a whole number ≥ 0, got {quoted(shift)}")
            pool = PoolConfig.parse(content, f"study.pools[{i}]")
            if shift and isinstance(content, dict) and content.get("label") is None:
                pool = dataclasses.replace(pool, label=f"{pool.label}_head-seed-{shift}")
            found.append((pool, shift))
        return found

    def arms(self) -> list[Arm]:
        """Return every head at every point of the axes."""
        return [
            Arm(_arm_label(str(pool.label), point), pool, point, shift)
            for point in _points(self.axes)
            for pool, shift in self.heads()
        ]

    @property
    def reference(self) -> str:
        """Label of the baseline's head."""
        heads = [str(pool.label) for pool, _ in self.heads()]
        return self.baseline or ("avg" if "avg" in heads else heads[0])

    def contrasts(self) -> list[Contrast]:
        """Return the contrasts that verdicts are about: those given, else every arm against the baseline's arm."""
        if given := self.primary.parsed():
            return given
        margin = None if self.primary.margin is None else self.primary.margin / 100
        return [
            Contrast(arm.label, self.baseline_of(arm), margin)
            for arm in self.arms()
            if arm.label != self.baseline_of(arm)
        ]

    def baseline_of(self, arm: Arm) -> str:
        """Return the label of the baseline at the point of an arm."""
        return _arm_label(self.reference, arm.at)

    def controls(self) -> list[tuple[str, str]]:
        """Return pairs of arms that must tie: one head from other values, and ggem with groups drawn at random."""
        own = {arm.label: arm for arm in self.arms()}
        return [
            (a, b)
            for a, b in itertools.permutations(own, 2)
            if own[a].at == own[b].at and _twin(own[a], own[b]) and not _twin(own[b], own[a])
        ]


def _twin(a: Arm, b: Arm) -> bool:
    """Return whether `a` is `b` with another head seed or with random groups."""
    plain = {key: value for key, value in a.pool.args.items() if key not in ("grouping", "grouping_seed")}
    if a.head_seed != b.head_seed:
        return a.pool.name == b.pool.name and a.pool.args == b.pool.args and b.head_seed == 0
    return a.pool.name == b.pool.name and a.pool.args.get("grouping") == "random" and plain == b.pool.args


def _arm_label(head: str, at: Mapping[str, Any]) -> str:
    return head + "".join(f",{key.rpartition('.')[2]}={value}" for key, value in at.items())
