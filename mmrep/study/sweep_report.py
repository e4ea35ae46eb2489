"""The results of a sweep: the best p, a table, sweep.json."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrep.evaluation.metrics import number
from mmrep.evaluation.scoring.uncertainty import standard_error
from mmrep.evaluation.suite import SCHEMA, Result
from mmrep.files import write_json
from mmrep.markup import align
from mmrep.pooling.gem import GGeM, exponents_of
from mmrep.study.sweep import State, Sweep

FILE = "sweep.json"


def score(results: Sequence[Result], metric: str) -> float:
    """Return a state's `METRIC` as the mean over the sets that have it, or its `SET/METRIC`."""
    found = _having(results, metric)
    return math.fsum(result.evaluation.metrics[name] for result, name in found) / len(found)


def best_state(swept: Sweep, metric: str) -> int:
    """Return the number of the best state. Among equals it is the trained one, then the one of the smallest p."""
    scores = [score(results, metric) for results in swept.results]
    return scores.index(max(scores))


def near_best(swept: Sweep, metric: str) -> list[State]:
    """Return the other states whose difference to the best is within two standard errors, paired over images."""
    best = best_state(swept, metric)
    top = _having(swept.results[best], metric)
    near = []
    for i, (state, results) in enumerate(zip(swept.states, swept.results, strict=True)):
        pairs = zip(top, _having(results, metric), strict=True)
        errors = [standard_error(a.evaluation, name, b.evaluation) for (a, name), (b, _) in pairs]
        gap = score(swept.results[best], metric) - score(results, metric)
        if i != best and gap <= 2 * math.hypot(*errors) / len(errors):
            near.append(state)
    return near


def _having(results: Sequence[Result], metric: str) -> list[tuple[Result, str]]:
    """Return the results on the sets that have a metric, and the name of the metric there."""
    place, _, name = metric.rpartition("/")
    return [(r, name) for r in results if name in r.evaluation.metrics and place in ("", r.evalset.name)]


def sweep_table(swept: Sweep) -> str:
    """Return a table of percentages with a row for each metric and a column for each state. A star marks the best."""
    rows = [["set", "metric", "n", "chance %", "±", *(state.name.rjust(6) for state in swept.states)]]
    for each in zip(*swept.results, strict=True):
        evalset = each[0].evalset
        for metric in each[0].evaluation.metrics:
            values = [result.evaluation.metrics[metric] for result in each]
            best = values.index(max(values))
            rows.append(
                [
                    evalset.name,
                    metric,
                    str(len(evalset.records)),
                    f"{100 * each[best].evaluation.chance[metric]:.2f}",
                    f"{100 * standard_error(each[best].evaluation, metric):.2f}",
                    *(f"{number(metric, value):>6}{'*' if i == best else ''}" for i, value in enumerate(values)),
                ]
            )
    return align(rows)


def remarks(swept: Sweep, metric: str, trained: str, chosen_on: str, tests: Sequence[str] = ()) -> list[str]:
    """Return the remarks below the table.

    Args:
        swept: of `sweep`.
        metric: what the best is chosen by.
        trained: name of the trained head.
        chosen_on: in words, the images.
        tests: test sets of the run among them.
    """
    best, near = best_state(swept, metric), near_best(swept, metric)
    value = score(swept.results[best], metric)
    told = "told from all others" if not near else f"not told from {', '.join(state.name for state in near)}"
    lines = [
        "*: best of the row; ±: its standard error over images, in points.",
        _heads(swept, trained),
        f"{metric}: {swept.states[best].name} is best, {100 * value:.2f}%; {told} (two standard errors, paired over "
        "images).",
        f"Chosen on {chosen_on}; "
        + (f"{', '.join(tests)}: a test set of the run, no test any more." if tests else "no test set was looked at."),
    ]
    if best in (1, len(swept.states) - 1) and len(swept.states) > 2:
        lines.insert(
            3, f"{swept.states[best].name} is the {'least' if best == 1 else 'greatest'} p tried: --p may go on."
        )
    return lines


def _heads(swept: Sweep, trained: str) -> str:
    negatives = ", ".join(negatives_of(swept))
    exponents = exponents_of(swept.states[0].head)
    state = "" if exponents is None else f" with p from {exponents.min():.3g} to {exponents.max():.3g}"
    if swept.put_in is None:
        return f"trained: {trained!r}{state}, negatives: {negatives}; p=: all its exponents set to that."
    note = " (p=1 is the mean of what is positive, not avg)" if negatives == "clamp" else ""
    return (
        f"trained: {trained!r}{state}; p=: {swept.put_in.name!r} in its place, over the same projection, "
        f"negatives: {negatives}{note}."
    )


def negatives_of(swept: Sweep) -> list[str]:
    """Return how the swept power means treat negative tokens."""
    return sorted({module.negatives for module in swept.states[-1].head.modules() if isinstance(module, GGeM)})


def write_sweep(swept: Sweep, metric: str, path: Path, about: dict[str, Any]) -> None:
    """Write sweep.json.

    Args:
        swept: of `sweep`.
        metric: what the best is chosen by.
        path: the file; its folder is made.
        about: further top-level fields (run, digests, versions).
    """
    best = best_state(swept, metric)
    entries = []
    for state, results in zip(swept.states, swept.results, strict=True):
        for result in results:
            errors = {name: standard_error(result.evaluation, name) for name in result.evaluation.metrics}
            entries.append({**result.to_dict(), "p": state.p, "standard_error": errors})
    content = {
        "schema": SCHEMA,
        **about,
        "put_in": swept.put_in and {"name": swept.put_in.name, "args": swept.put_in.args},
        "negatives": negatives_of(swept),
        "metric": metric,
        "best": {
            "model": swept.states[best].name,
            "p": swept.states[best].p,
            "value": score(swept.results[best], metric),
        },
        "near_best": [state.name for state in near_best(swept, metric)],
        "results": entries,
    }
    write_json(path, content)
