"""Tables of all arms and of the registered contrasts, slopes from seed to seed, and the data of results.csv."""

from typing import Any

from mmrep.study.report.answer import interval_of, plural, verdict_of
from mmrep.study.report.facts import Facts, named
from mmrep.study.report.figures import Axis, Slopes
from mmrep.study.report.model import Column, Panels, Row, Section, Table
from mmrep.study.report.values import Seeds
from mmrep.study.report.words import metric_words
from mmrep.study.statistics import MIN_SEEDS

EXPLORATORY = "Exploratory: intervals of single differences, unadjusted, no verdicts."
_PANELS, _OPEN, _SHORT = 8, 12, 8


def axes_of(facts: Facts) -> list[str]:
    """Return the names of the study's axes."""
    return list(dict.fromkeys(name for run in facts.results["runs"] for name in run["at"]))


def value_text(value: Any) -> str:
    """Return the value of an option as text."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def arm_columns(facts: Facts, metric: bool, judged: bool) -> list[Column]:
    """Return the columns of a table of arms. `judged` adds adjusted p-values and verdicts."""
    several, intervals = len(facts.seeds) > 1, any(d["low"] is not None for d in facts.results["differences"])
    level = f"{100 * facts.results['confidence']:g}%"
    versus = f"− {facts.baseline}" if len(facts.baseline) <= _SHORT else "− baseline"
    columns = [Column("metric", "metric")] if metric else []
    columns += [Column("pool", "arm", term="arm")]
    columns += [Column(f"at {name}", name.rpartition(".")[2], rank=5) for name in axes_of(facts)] if not metric else []
    columns += [Column("mean", "mean", "share", "%", "mean")]
    if several:
        columns += [Column("sd", "± SD", "share", term="sd", rank=2)]
        columns += [Column("values", "every seed", "seeds", "%", "seeds", rank=9)]
    columns += [Column("chance", "chance", "share", "%", "chance", rank=3)] if metric else []
    if facts.results["paired"]:
        columns += [Column("difference", versus, "points", "", "difference")]
    if intervals:
        columns += [Column("interval", f"{level} interval", "interval", term="interval")]
        columns += [Column("p", "p", "p", term="p", rank=6)] if not judged else []
        columns += [Column("p_adjusted", "p adj.", "p", term="p_adjusted")] if judged else []
        columns += [Column("p_holm", "p Holm", "p", term="p_holm", rank=4)] if judged else []
        columns += [Column("verdict", "verdict", "verdict", term="verdict")] if judged else []
    return columns


def arm_row(facts: Facts, arm: str, metric: str) -> Row:
    """Return an arm's cells in a metric."""
    entry = facts.difference(metric, arm, facts.baseline_of(arm))
    first = facts.runs(arm)[0]
    values = facts.values(arm, metric)
    row: Row = {
        "metric": metric,
        "pool": arm,
        "head": first["head"],
        "n_seeds": len(values.values),
        "items": first["items"][metric],
        "chance": first["chance"][metric],
        "mean": facts.mean(arm, metric),
        "sd": facts.spread(arm, metric),
        "values": values,
        **{f"at {name}": value_text(first["at"][name]) for name in axes_of(facts) if name in first["at"]},
    }
    if entry:
        row |= {
            "difference": entry["mean"],
            "interval": interval_of(entry),
            "p": entry["p"],
            "p_adjusted": entry["p_adjusted"],
            "p_holm": entry["p_holm"],
            "verdict": verdict_of(entry, facts.results["interim"]),
        }
    return row


def main_table(facts: Facts) -> Table | None:
    """Return the table of all arms in the primary metric."""
    metric = facts.main_metric
    if metric is None:
        return None
    judged = any(entry["verdict"] for entry in facts.contrasts)
    versus = f"; differences to {facts.baseline} in percentage points" if facts.results["paired"] else ""
    note = f"{named(metric)}, in percent{versus}."
    if judged:
        note += (
            " Verdicts, adjusted p-values and simultaneous intervals belong to the registered contrasts (the family); "
            "other differences have intervals of their own and no verdict."
        )
    title = f"Primary metric: {metric}" if facts.primary else metric
    rows = [arm_row(facts, arm, metric) for arm in facts.arms]
    return Table(title, arm_columns(facts, False, judged), rows, note, short=True, filtered=len(rows) > 8)


def contrast_tables(facts: Facts) -> list[Table]:
    """Return the registered contrasts in two tables: the evidence, and what planning needs."""
    entries = [each for each in facts.contrasts if each["low"] is not None]
    evidence = [
        Column("pool", "contrast", term="registered"),
        Column("mean", "difference", "points", "", "difference"),
        Column("interval", "interval", "interval", term="interval"),
        Column("p", "p", "p", term="p"),
        Column("p_adjusted", "p adj.", "p", term="p_adjusted"),
        Column("p_holm", "p Holm", "p", term="p_holm"),
        Column("margin", "margin ±", "share", "", "margin"),
        Column("verdict", "verdict", "verdict", term="verdict"),
    ]
    planning = [
        evidence[0],
        Column("seeds", "seeds", "count", term="seeds"),
        Column("sd", "SD of differences", "share", "", "sd_difference"),
        Column("correlation", "correlation", "number", term="correlation"),
        Column("pairing", "variance left", "share", "%", "pairing", 0),
        Column("detectable", "detectable", "share", "", "detectable"),
        Column("target", "target", "share", "", "needed"),
        Column("seeds_needed", "seeds needed", "count", term="needed"),
    ]
    rows: list[Row] = []
    for each in entries:
        row: Row = {"pool": f"{each['a']} − {each['b']}", "interval": interval_of(each)}
        row |= {key: value for key, value in each.items() if isinstance(value, int | float)}
        rows.append({**row, "verdict": verdict_of(each, facts.results["interim"])})
    found = []
    for title, columns, note in (
        ("Registered contrasts", evidence, "Differences and margins in percentage points."),
        ("Power", planning, "SDs, detectable differences and targets in percentage points."),
    ):
        kept = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
        found += [Table(title, kept, rows, note, arm="", folded=len(rows) > _OPEN)] if rows else []
    return found


def remarks(facts: Facts) -> list[str]:
    """Return the remarks that a reader needs to judge the tables."""
    results, count = facts.results, len(facts.seeds)
    most = "" if facts.complete else "at most "
    lines = [f"{most}{plural(count, 'seed')} an arm; differences are percentage points."]
    lines[0] = lines[0][0].upper() + lines[0][1:]
    if count < MIN_SEEDS:
        lines.append(
            f"Fewer than {MIN_SEEDS} seeds: the differences stand without a verdict. Another seed may turn their "
            "signs; give study.seeds at least 3, better 5."
        )
    elif facts.primary:
        family = len(facts.contrasts)
        together = f" hold at once for all {family} contrasts" if family > 1 else " are of one contrast"
        lines.append(
            f"Verdicts are about {facts.primary} (study.primary), whose intervals{together}. No interval is narrower "
            "than the resolution of its metric allows (one test image)."
        )
    if results["paired"]:
        lines.append(
            "Paired: the arms of one seed saw the same batches and started equal wherever they share a parameter."
        )
    else:
        lines.append(f"Not paired, so no differences: {results['unpaired_because']}.")
    if results["preserved"]:
        lines.append(
            f"All heads started equal to the model in {results['preserved']} (model.pool_init: preserve). Those that "
            "can't equal its head by themselves keep it as a part, with a gate or side by side."
        )
    return lines


def slopes(facts: Facts) -> list[Panels]:
    """Return a panel for each registered contrast, with a line for each seed."""
    metric = facts.primary
    entries = [each for each in facts.contrasts if each["seeds"] > 1][:_PANELS]
    if metric is None or not entries:
        return []
    figures = []
    for each in entries:
        a, b = (dict(zip(*facts.values(arm, metric), strict=True)) for arm in (each["a"], each["b"]))
        seeds = tuple(seed for seed in each["seed_list"] if seed in a and seed in b)
        up = sum(a[seed] > b[seed] for seed in seeds)
        summary = f"{each['a']} is above {each['b']} with {up} of {len(seeds)} seeds."
        first, second = (Seeds(seeds, tuple(values[seed] for seed in seeds)) for values in (a, b))
        title = f"{each['a']} − {each['b']}: up in {up} of {len(seeds)}"
        figures.append(
            Slopes(title, summary, each["a"], each["b"], first, second, Axis(metric_words(metric)[1], "%", share=True))
        )
    left = len(facts.contrasts) - len(figures)
    more = f" {left} more contrasts are not drawn." if left > 0 else ""
    caption = f"A line joins the two arms of one seed: same batches, same initial values. Thick: the mean.{more}"
    return [Panels("Seed by seed", caption, [*figures])]


def others(facts: Facts) -> Section | None:
    """Return the section on all other metrics."""
    metrics = [metric for metric in facts.metrics if metric != facts.main_metric]
    if not metrics:
        return None
    rows = [arm_row(facts, arm, metric) for metric in metrics for arm in facts.arms]
    table = Table("", arm_columns(facts, True, False), rows, filtered=True)
    return Section("others", "Other metrics", [EXPLORATORY], [table])


def short_others(facts: Facts, metrics: list[str]) -> Table | None:
    """Return the terminal's table of the other main metrics."""
    chosen = [metric for metric in metrics if metric != facts.main_metric]
    if not chosen:
        return None
    rows = [arm_row(facts, arm, metric) for metric in chosen for arm in facts.arms]
    return Table(EXPLORATORY, arm_columns(facts, True, False), rows, short=True)


def data_table(facts: Facts) -> Table:
    """Return the table of results.csv: a row for each arm and metric, shares as they are."""
    columns = [
        Column("metric", "metric"), Column("pool", "pool"), Column("head", "head"),
        *(Column(f"at {name}", name) for name in axes_of(facts)),
        Column("n_seeds", "seeds", "count"), Column("items", "items", "count"), Column("chance", "chance", "share"),
        Column("mean", "mean", "share"), Column("sd", "sd", "share"), Column("baseline", "baseline"),
        Column("difference", "difference", "points"), Column("interval", "interval", "interval"),
        Column("p", "p", "p"), Column("p_adjusted", "p_adjusted", "p"), Column("p_holm", "p_holm", "p"),
        Column("verdict", "verdict"), Column("values", "value", "seeds"),
    ]  # fmt: skip
    rows: list[Row] = []
    for metric in facts.metrics:
        for arm in facts.arms:
            entry = facts.difference(metric, arm, facts.baseline_of(arm))
            verdict = entry["verdict"] if entry else None
            rows.append({**arm_row(facts, arm, metric), "baseline": facts.baseline_of(arm), "verdict": verdict})
    return Table("results", columns, rows)


def section(facts: Facts) -> Section:
    """Return the section with the tables of arms and contrasts, and the slopes."""
    main = main_table(facts)
    return Section("arms", "All arms", [], [*([main] if main else []), *contrast_tables(facts), *slopes(facts)])
