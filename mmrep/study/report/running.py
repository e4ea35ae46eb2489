"""How the study was run: tuning, differences besides the head, failures, history; and what it cannot show."""

import statistics

from mmrep.study.report.answer import plural
from mmrep.study.report.arms import value_text
from mmrep.study.report.facts import Facts
from mmrep.study.report.model import Block, Bullets, Column, Row, Section, Table
from mmrep.study.results import Tuning
from mmrep.study.statistics import MIN_SEEDS

FEW_PATCHES = 64
_FEW_SEEDS = 10


def section(facts: Facts) -> Section:
    """Return the section on how the study was run."""
    results = facts.results
    blocks: list[Block] = []
    text = []
    tuning = results["tuning"]
    if tuning:
        blocks += _tuning(tuning)
    else:
        text.append(
            "No tuning: every arm was trained with the same options, which may suit some heads better than others."
        )
    if results["unequal"]:
        text.append("Apart from the head, the arms differ in this:")
        blocks.insert(0, Bullets(results["unequal"]))
    if results["failed"] or results["missing"]:
        blocks.append(_failures(facts))
    if results["history"]:
        rows: list[Row] = [{"time": event["time"], "text": event["text"]} for event in results["history"]]
        blocks.append(Table("History", [Column("time", "time"), Column("text", "what happened")], rows, arm=""))
    rows = [{"seed": seed, "digest": digest} for seed, digest in results["batches"].items()]
    columns = [Column("seed", "seed"), Column("digest", "digest of all batches")]
    note = (
        "All arms of a seed saw batches with this digest."
        if results["paired"]
        else "The last arm's digest of each seed."
    )
    blocks.append(Table("Evidence of pairing", columns, rows, note, arm="", folded=len(rows) > 5))
    return Section("running", "How it was run", text, blocks)


def _tuning(tuning: Tuning) -> list[Block]:
    """Return what every arm was given, what was chosen, and a warning where the choice lies at an edge."""
    pools = list(dict.fromkeys([*tuning["chosen"], *(run["pool"] for run in tuning["runs"])]))
    rows: list[Row] = []
    for pool in pools:
        runs = [run for run in tuning["runs"] if run["pool"] == pool]
        chosen = tuning["chosen"].get(pool, {})
        values = [run["value"] for run in runs if run["at"] == chosen]
        points = len({str(sorted(run["at"].items())) for run in runs})
        row: Row = {
            "pool": pool,
            "points": points,
            "runs": len(runs),
            "value": statistics.fmean(values) if values else None,
        }
        row |= {f"at {name}": value_text(chosen[name]) for name in tuning["fields"] if name in chosen}
        rows.append({**row, "edge": "at the edge" if pool in tuning["edge"] else "inside"})
    columns = [
        Column("pool", "arm", term="arm"),
        Column("points", "grid points", "count"),
        Column("runs", "runs", "count"),
        *(Column(f"at {name}", f"chosen {name}") for name in tuning["fields"]),
        Column("value", tuning["metric"], "share", "%"),
        Column("edge", "choice in the grid"),
    ]
    seeds = ", ".join(map(str, tuning["seeds"]))
    equal = len({row["runs"] for row in rows}) <= 1
    note = (
        f"Chosen by {tuning['metric']} on {'seed' if len(tuning['seeds']) == 1 else 'seeds'} {seeds}, which take no "
        "part in the study. "
        f"{'Every arm was given the same budget.' if equal else 'The arms were not given the same budget.'}"
    )
    warning = [
        f"Tuning of {pool} ended at the edge of its grid: a wider grid may find something better for it."
        for pool in tuning["edge"]
    ]
    return [Table("Tuning", columns, rows, note), *([Bullets(warning)] if warning else [])]


def _failures(facts: Facts) -> Table:
    results = facts.results
    rows: list[Row] = [{"pool": f["pool"], "seed": str(f["seed"]), "text": f["message"]} for f in results["failed"]]
    note = f"{plural(results['missing'], 'planned run')} not finished yet." if results["missing"] else ""
    columns = [Column("pool", "arm"), Column("seed", "seed"), Column("text", "message")]
    return Table("Failed runs", columns, rows, note)


def limits(facts: Facts) -> Section:
    """Return the section on what this study cannot show."""
    return Section("limits", "What this study cannot show", [], [Bullets(limit_lines(facts))])


def limit_lines(facts: Facts) -> list[str]:
    """Return what this study cannot show, derived from what it is."""
    results, count = facts.results, len(facts.seeds)
    lines = []
    sets = list(dict.fromkeys(name.rpartition("/")[0] for name in facts.metrics))
    if count < MIN_SEEDS:
        lines.append(
            f"It has {plural(count, 'seed')}. Training again with another seed may turn the sign of every difference."
        )
    elif count < _FEW_SEEDS:
        lines.append(
            f"It has {plural(count, 'seed')}. An interval from so few is wide, and its width itself is uncertain."
        )
    undecided = [each for each in facts.contrasts if each["verdict"] == "cannot tell"]
    if undecided:
        needed = [each["seeds_needed"] for each in undecided if each["seeds_needed"]]
        more = f" Up to {max(needed):,} seeds would be needed." if needed and max(needed) > count else ""
        lines.append(f"“Cannot tell” ({plural(len(undecided), 'contrast')}) does not mean equal.{more}")
    if not facts.contrasts:
        lines.append("No verdict stands in this report, so nothing here is a finding yet.")
    if results["interim"]:
        lines.append(
            "It is not finished. Verdicts may change, and stopping at a good moment makes false claims more likely."
        )
    if results["kind"] == "screen":
        lines.append(
            "The trunk was frozen. A head that fits frozen tokens best need not be best when the trunk learns with it."
        )
    patches = results["patch_tokens"]
    if patches is not None and patches < FEW_PATCHES:
        lines.append(
            f"A demonstration: {patches} patch tokens an image. What pools best over so few says little about real "
            f"models; use at least {FEW_PATCHES}."
        )
    if len(sets) == 1:
        lines.append(f"One data set ({sets[0]}): nothing is known about others.")
    elif facts.primary:
        lines.append(
            f"Verdicts are about one metric on one data set ({facts.primary}); the other sets are exploratory."
        )
    if facts.primary:
        items = results["runs"][0]["items"][facts.primary]
        lines.append(f"The primary metric has {items:,} test items, so one item is {100 / max(items, 1):.2g} points.")
    if not results["controls"]:
        lines.append("No pair of arms that must tie was trained, so the procedure itself was not checked.")
    if results["tuning"] is None:
        lines.append("Options were not tuned for each head: a head may lose because the shared options do not suit it.")
    if results["unequal"]:
        lines.append(
            f"The head is not all that differs between the arms ({plural(len(results['unequal']), 'remark')} in “How "
            "it was run”)."
        )
    lines.append(
        "One trunk, one text tower and one training budget: a longer training or a larger model may order the heads "
        "differently."
    )
    return lines
