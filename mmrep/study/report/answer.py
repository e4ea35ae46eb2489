"""The first screen: a sentence for each registered contrast, badges, and the forest plot."""

from mmrep.study.report.facts import Facts, named
from mmrep.study.report.figures import Axis, Forest, ForestRow
from mmrep.study.report.model import Answer, Badge, Panels, Section
from mmrep.study.report.values import Interval, Seeds, signed, spanned
from mmrep.study.report.words import metric_words
from mmrep.study.results import DifferenceEntry
from mmrep.study.statistics import MIN_SEEDS

VERDICTS = ("better", "worse", "equivalent", "cannot tell")


def plural(count: int, noun: str) -> str:
    """Return a count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def digits_of(entry: DifferenceEntry) -> int:
    """Return the decimals for a difference: two where one would show an interval's ends as equal or as zero."""
    ends = [entry["mean"], *(end for end in (entry["low"], entry["high"]) if end is not None)]
    return 2 if min(abs(100 * end) for end in ends) < 0.095 or max(abs(100 * end) for end in ends) < 1 else 1


def smaller_than_margin(entry: DifferenceEntry) -> bool:
    """Return whether a difference is proven, and proven to be smaller than the margin."""
    low, high, margin = entry["low"], entry["high"], entry["margin"]
    if entry["verdict"] not in ("better", "worse") or low is None or high is None or margin is None:
        return False
    return max(abs(low), abs(high)) <= margin


def verdict_of(entry: DifferenceEntry, interim: bool) -> str:
    """Return the verdict as the report words it."""
    verdict = entry["verdict"]
    if verdict is None:
        return ""
    small = ", but by less than the margin" if smaller_than_margin(entry) else ""
    return f"{verdict}{small}{' (interim)' if interim else ''}"


def sentence(entry: DifferenceEntry, interim: bool) -> Answer:
    """Return the answer to one registered contrast."""
    place, word = metric_words(entry["metric"])
    digits, arm = digits_of(entry), entry["a"]
    start = f"On {place} ({word}), {arm} against {entry['b']}: {signed(100 * entry['mean'], digits)}"
    low, high, seeds = entry["low"], entry["high"], entry["seeds"]
    if low is None or high is None or entry["verdict"] is None:
        end = f", which takes at least {MIN_SEEDS} seeds."
        return Answer(f"{start} points in {plural(seeds, 'seed')}: ", "no verdict", end, arm)
    end, needed, target = ".", entry["seeds_needed"], entry["target"]
    if entry["verdict"] == "equivalent" and entry["margin"] is not None:
        end = f" within ±{100 * entry['margin']:g} points."
    elif entry["verdict"] == "cannot tell" and needed is not None and target is not None and needed > seeds:
        end = f"; {needed:,} seeds are needed for {100 * target:g}."
    return Answer(f"{start} {spanned(low, high, digits)} points: ", verdict_of(entry, interim), end, arm)


def answers(facts: Facts) -> list[Answer]:
    """Return the sentences of the first screen."""
    results = facts.results
    if not results["paired"]:
        reason = results["unpaired_because"] or "unknown"
        return [Answer("The runs are ", "not paired", f", so no differences are taken: {reason}.")]
    if facts.contrasts:
        return [sentence(each, results["interim"]) for each in facts.contrasts]
    if facts.primary is None and results["primary"] is not None:
        return [Answer(f"Some runs have no number for {results['primary']}: ", "no verdicts", ".")]
    if facts.primary is None:
        return [Answer("No primary metric was chosen, so every difference is exploratory: ", "no verdicts", ".")]
    if len(facts.arms) == 1:
        return [Answer(f"{facts.arms[0]} is the only arm with finished runs: ", "nothing to compare", " yet.")]
    return [Answer("No registered contrast has finished runs of both its arms with the same seeds.")]


def tally(facts: Facts) -> str:
    """Return how many contrasts have which verdict."""
    found = [each["verdict"] for each in facts.contrasts]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in VERDICTS if verdict in found)


def _claim(facts: Facts) -> list[Badge]:
    """Return a warning where the metric, its contrasts or the level were changed after runs were finished."""
    if facts.registered:
        return []
    text = "The primary metric, its contrasts or the level were changed after runs were finished: see the history."
    return [Badge("claim changed", "warn", text)]


def _evaluations(facts: Facts) -> list[Badge]:
    """Return how often the test sets were used, where all runs have counted it."""
    counts = [run.get("evaluations") for run in facts.results["runs"]]
    if not counts or None in counts:
        return []
    most = max(count or 0 for count in counts)
    if most <= 1:
        text = "Every run was evaluated on the test sets once, when it was finished."
        return [Badge("test set evaluated once", "good", text)]
    return [Badge(f"test set evaluated {most} times", "warn", "Some run wrote figures on the test sets again.")]


def badges(facts: Facts) -> list[Badge]:
    """Return the facts about the study that a reader must not miss."""
    results = facts.results
    made = [
        Badge(
            "paired",
            "good",
            "The arms of one seed saw the same batches and started equal wherever they share a parameter.",
        )
        if results["paired"]
        else Badge("not paired", "warn", f"{results['unpaired_because'] or 'Unknown reason'}."),
        *_claim(facts),
        *_evaluations(facts),
        *_controls(facts),
    ]
    done, planned = len(results["runs"]), len(results["runs"]) + len(results["failed"]) + results["missing"]
    if results["interim"]:
        made.append(
            Badge(
                f"interim: {done} of {planned} runs",
                "warn",
                "The planned runs are not all finished. Looking early and stopping at a good moment makes false "
                "claims more likely.",
            )
        )
    if results["kind"] == "screen":
        made.append(
            Badge(
                "screening",
                "warn",
                "The trunk is frozen and the heads were trained side by side. This ranks candidates; it does not say "
                "what training the whole model would find.",
            )
        )
    count = len(facts.seeds)
    whole = "Every arm was trained once with each seed." if facts.complete else "Not every arm has a run of every seed."
    few = f"Fewer than {MIN_SEEDS} seeds: no verdicts. " if count < MIN_SEEDS else ""
    made.append(Badge(plural(count, "seed"), "warn" if few else "plain", f"{few}{whole}"))
    return made


def _controls(facts: Facts) -> list[Badge]:
    made = []
    for control in facts.results["controls"]:
        pair, entry = (
            f"{control['a']} and {control['b']}",
            facts.difference(facts.main_metric, control["a"], control["b"]),
        )
        about = f"{pair} must tie: {control['text']}."
        if entry is None or entry["low"] is None or entry["high"] is None:
            made.append(
                Badge("control not judged", "plain", f"{about} There are too few seeds to see whether they do.")
            )
            continue
        text = f"{about} Difference: {signed(100 * entry['mean'], 2)} {spanned(entry['low'], entry['high'], 2)} points."
        tied = entry["low"] <= 0 <= entry["high"]
        made.append(Badge("control tied" if tied else "control did not tie", "good" if tied else "warn", text))
    if made:
        return made
    return [
        Badge(
            "no control", "plain", "No pair of arms that must tie was trained, so nothing checks the procedure itself."
        )
    ]


def forest_row(entry: DifferenceEntry, label: str, interval: Interval | None, verdict: str) -> ForestRow:
    """Return a row of a forest plot."""
    seeds = Seeds(tuple(entry["seed_list"]), tuple(entry["differences"]))
    return ForestRow(label, entry["a"], entry["mean"], interval, seeds, entry["margin"], verdict)


def interval_of(entry: DifferenceEntry) -> Interval | None:
    """Return the interval over seeds, or None below three."""
    low, high = entry["low"], entry["high"]
    return None if low is None or high is None else Interval(low, high)


def forest(facts: Facts) -> list[Panels]:
    """Return the forest plot of the registered contrasts, or nothing where there are none."""
    entries = facts.contrasts
    if not entries or facts.primary is None:
        return []
    interim = facts.results["interim"]
    rows = [forest_row(e, f"{e['a']} − {e['b']}", interval_of(e), verdict_of(e, interim)) for e in entries]
    figure = Forest(
        f"Differences in {named(facts.primary)}",
        " ".join(each.text for each in answers(facts)[:12]),
        rows,
        Axis("difference", "percentage points"),
    )
    return [Panels("", _forest_caption(facts), [figure])]


def _forest_caption(facts: Facts) -> str:
    entries, level = facts.contrasts, f"{100 * facts.results['confidence']:g}%"
    parts = (
        ["Each small dot is one seed, the large mark their mean."]
        if len(facts.seeds) > 1
        else ["Each mark is one seed."]
    )
    if any(each["low"] is not None for each in entries):
        together = f", simultaneous over {plural(len(entries), 'contrast')}" if len(entries) > 1 else ""
        parts.append(f"Bars are {level} intervals over seeds{together}.")
    margins = {each["margin"] for each in entries if each["margin"] is not None}
    if margins:
        size = f"±{100 * min(margins):g} points" if len(margins) == 1 else "of each contrast"
        parts.append(f"The shaded band is the margin ({size}): differences inside it do not matter.")
    items = facts.results["runs"][0]["items"].get(facts.primary or "", 0)
    return " ".join([*parts, f"{items:,} test items."])


def section(facts: Facts) -> Section:
    """Return the section with the forest plot."""
    return Section("answer", "The answer", [], list(forest(facts)))
