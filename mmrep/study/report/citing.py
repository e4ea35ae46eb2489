"""Text to copy: a methods paragraph, a LaTeX table, BibTeX, and the command."""

import re
from collections.abc import Sequence

from mmrep.study.report.answer import interval_of, plural
from mmrep.study.report.facts import Facts, named
from mmrep.study.report.model import Code, Section
from mmrep.study.report.values import spanned
from mmrep.study.report.words import papers
from mmrep.study.statistics import MIN_SEEDS

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "→": r"$\to$", "±": r"$\pm$",
    "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def latex(text: str) -> str:
    """Return text for LaTeX, in which nothing is a command."""
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def listed(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def methods(facts: Facts) -> str:
    """Return the methods paragraph."""
    results, count = facts.results, len(facts.seeds)
    what = (
        "pooling heads on one frozen trunk"
        if results["kind"] == "screen"
        else "models that differ in their pooling head"
    )
    text = [
        f"We compared {len(facts.arms)} {what} ({listed(facts.arms)}) with mmrep {results['mmrep']}, "
        f"training each with {plural(count, 'seed')}."
    ]
    if results["paired"]:
        text.append("Runs of one seed saw the same batches and started from equal values of all shared parameters.")
    if results["tuning"]:
        tuning = results["tuning"]
        text.append(
            f"For every arm, {listed(tuning['fields'])} was chosen on {tuning['metric']} with separate seeds and an "
            "equal budget."
        )
    if facts.primary and facts.contrasts:
        text.append(_inference(facts))
    if results["interim"]:
        text.append("The study is not finished; these results are interim.")
    return " ".join(text)


def _inference(facts: Facts) -> str:
    results, family = facts.results, len(facts.contrasts)
    if len(facts.seeds) < MIN_SEEDS:
        return (
            f"The primary metric was {named(facts.primary or '')}; with fewer than {MIN_SEEDS} seeds we claim no "
            "differences."
        )
    simultaneous = "simultaneous " if family > 1 else ""
    when = ", chosen beforehand," if facts.registered else ", changed after runs were finished,"
    method = facts.contrasts[0]["method"].split(", simultaneous")[0]
    text = (
        f"The primary metric{when} was {named(facts.primary or '')}. The unit of inference is the training run. "
        f"We report {simultaneous}{100 * results['confidence']:g}% confidence intervals for "
        f"{plural(family, 'registered contrast')} ({method})."
    )
    margins = sorted({each["margin"] for each in facts.contrasts if each["margin"] is not None})
    if margins:
        text += (
            f" Arms count as equivalent where the interval lies within ±{listed([f'{100 * m:g}' for m in margins])} "
            "points."
        )
    return f"{text} All other comparisons are exploratory."


def latex_table(facts: Facts) -> str:
    """Return the table of all arms in the primary metric, for booktabs."""
    metric = facts.main_metric or ""
    head = f"Arm & {latex(named(metric))} (\\%) & $\\Delta$ to {latex(facts.baseline)} & Interval & Verdict \\\\"
    note = "% Intervals of registered contrasts hold all at once, others one at a time; a verdict marks the former."
    lines = [r"% \usepackage{booktabs}", note, r"\begin{tabular}{lrrcl}", r"\toprule", head, r"\midrule"]
    for arm in facts.arms:
        spread, entry = facts.spread(arm, metric), facts.difference(metric, arm, facts.baseline_of(arm))
        value = f"${100 * facts.mean(arm, metric):.2f}" + ("$" if spread is None else f" \\pm {100 * spread:.2f}$")
        cells = ["--", "--", "--"]
        if entry:
            interval = interval_of(entry)
            span = f"${spanned(*interval, 2).replace('−', '-')}$" if interval else "--"
            cells = [f"${100 * entry['mean']:+.2f}$", span, entry["verdict"] or "--"]
        lines.append(" & ".join([latex(arm), value, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def bibtex(facts: Facts) -> str:
    """Return the entries of mmrep and of the heads that take part."""
    version = facts.results["mmrep"]
    entries = [
        "@misc{mmrep,\n  title        = {mmrep: paired comparisons of pooling heads for image-text models},\n"
        f"  note         = {{Version {latex(version)}}},\n  howpublished = {{Python package}}\n}}"
    ]
    for key, authors, title, number in papers([facts.head(arm) for arm in facts.arms]):
        year = re.sub(r".*?(\d{4}).*", r"\1", key)
        entries.append(
            f"@misc{{{key},\n  title         = {{{title}}},\n  author        = {{{authors}}},\n"
            f"  year          = {{{year}}},\n"
            f"  eprint        = {{{number}}},\n  archivePrefix = {{arXiv}}\n}}"
        )
    return "\n\n".join(entries)


def section(facts: Facts) -> Section:
    """Return the section of texts to copy."""
    codes = [Code("Command", facts.results["command"], "sh"), Code("Methods", methods(facts), "text")]
    if facts.main_metric:
        codes.append(Code("LaTeX table", latex_table(facts), "latex"))
    return Section("citing", "Reproduce and cite", [], [*codes, Code("BibTeX", bibtex(facts), "bibtex")])
