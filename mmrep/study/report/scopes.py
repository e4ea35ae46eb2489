"""What a difference holds for: these test images, new images, or these checkpoints alone."""

from mmrep.study.report.answer import forest_row, interval_of
from mmrep.study.report.facts import Facts, named
from mmrep.study.report.figures import Axis, Forest
from mmrep.study.report.model import Column, Panels, Row, Section, Table
from mmrep.study.report.values import Interval
from mmrep.study.results import DifferenceEntry

NAMES = ("these images, new seeds", "new images, new seeds", "these checkpoints only")
TEXT = [
    "These images, new seeds: what another training run would show on the same test images. Verdicts are about this.",
    "New images, new seeds: what another training run would show on other images of the same kind. It is wider because "
    "the test images are a sample too.",
    "These checkpoints only: what these very models would show on other images. It says nothing about the pooling, "
    "only about the models at hand, and must not be taken for evidence about training.",
]


def _intervals(entry: DifferenceEntry) -> list[Interval | None]:
    new, fixed = entry["new_images"], entry["these_checkpoints"]
    return [
        interval_of(entry),
        Interval(new["low"], new["high"]) if new else None,
        Interval(fixed["low"], fixed["high"]) if fixed else None,
    ]


def section(facts: Facts) -> Section | None:
    """Return the section on the three intervals of every registered contrast."""
    entries = [each for each in facts.contrasts if each["new_images"] or each["these_checkpoints"]]
    if not entries or facts.primary is None:
        return None
    figures, rows = [], []
    for each in entries:
        found = [(name, interval) for name, interval in zip(NAMES, _intervals(each), strict=True) if interval]
        summary = f"{each['a']} − {each['b']}: " + "; ".join(
            f"{name}: {100 * low:+.2f} to {100 * high:+.2f} points" for name, (low, high) in found
        )
        bare = {**each, "seed_list": [], "differences": []}
        lines = [forest_row(bare, name, interval, "") for name, interval in found]  # type: ignore[arg-type]  # a copy
        title = f"{each['a']} − {each['b']}"
        figures.append(Forest(title, summary, lines, Axis("difference", "percentage points")))
        rows.append(_row(each))
    columns = [
        Column("pool", "contrast"),
        *(Column(name, name, "interval", term="interval") for name in NAMES),
        Column("p_new", "p, new images", "p"),
        Column("seeds", "variance from seeds", "share", "%", digits=0),
        Column("images", "from images", "share", "%", digits=0),
        Column("both", "from both together", "share", "%", digits=0),
    ]
    caption = f"{named(facts.primary)}. Intervals of one contrast below each other, on one axis."
    table = Table("", columns, rows, "Intervals in percentage points.", arm="")
    shown = [Panels("", caption, [*figures])] if len(figures) <= 6 else []
    return Section("scopes", "What the differences hold for", TEXT, [*shown, table])


def _row(entry: DifferenceEntry) -> Row:
    new = entry["new_images"]
    row: Row = {"pool": f"{entry['a']} − {entry['b']}", **dict(zip(NAMES, _intervals(entry), strict=True))}
    if new:
        row |= {"p_new": new["p"], "seeds": new["parts"]["seeds"], "images": new["parts"]["images"]}
        row["both"] = new["parts"]["both"]
    return row
