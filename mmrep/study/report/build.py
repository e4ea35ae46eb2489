"""Making the report from the results of a study."""

from mmrep.study.report import answer, arms, citing, cost, gallery, inside, running, scopes, training
from mmrep.study.report.answer import plural
from mmrep.study.report.facts import Facts, named
from mmrep.study.report.model import Block, Bullets, Report, Section, Table
from mmrep.study.report.words import used
from mmrep.study.results import Results, metrics_of


def build(results: Results) -> Report:
    """Return the report of a study."""
    facts = Facts(results)
    made = [
        answer.section(facts),
        arms.section(facts),
        scopes.section(facts),
        cost.section(facts),
        arms.others(facts),
        gallery.section(facts),
        training.section(facts),
        inside.section(facts),
        running.section(facts),
        running.limits(facts),
        citing.section(facts),
    ]
    sections = [section for section in made if section and (section.text or section.blocks)]
    return Report(
        title=results["name"],
        subtitle=_subtitle(facts),
        answers=answer.answers(facts),
        summary=answer.tally(facts),
        badges=answer.badges(facts),
        sections=sections,
        looks=facts.looks,
        data=arms.data_table(facts),
        short=_short(facts, sections),
        terms=used(_terms(sections)),
    )


def _short(facts: Facts, sections: list[Section]) -> list[Block]:
    """Return what a terminal shows: the main metrics of every set, the short tables, and the remarks."""
    results = facts.results
    found = [block for section in sections for block in section.blocks if isinstance(block, Table) and block.short]
    other = arms.short_others(facts, [name for name in metrics_of(results, primary=True) if name in facts.metrics])
    ordered = [*found[:1], *([other] if other else []), *found[1:]] if facts.main_metric else found
    demonstration = [line for line in running.limit_lines(facts) if line.startswith("A demonstration")]
    return [*ordered, Bullets([*arms.remarks(facts), *demonstration])]


def _subtitle(facts: Facts) -> str:
    results = facts.results
    kind = "Screening of heads on a frozen trunk" if results["kind"] == "screen" else "Comparison of pooling heads"
    about = f"primary metric {named(facts.primary)}" if facts.primary else "no primary metric"
    seeds, count = plural(len(facts.seeds), "seed"), plural(len(facts.arms), "arm")
    return f"{kind}: {count}, {seeds}, {about}. mmrep {results['mmrep']}."


def _terms(sections: list[Section]) -> set[str]:
    """Return the terms that a reader meets."""
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    found = {column.term for table in tables for column in table.columns if column.term}
    return found | {"baseline", "primary", "registered", "family", "exploratory", "pareto", "latency"}
