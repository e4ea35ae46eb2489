"""Reading a study's results.json, and checking that a report can be made of it."""

import json
from pathlib import Path

from mmrep.config.checks import ConfigError, quoted, require
from mmrep.config.schema import read_value
from mmrep.study.report import inside
from mmrep.study.report.build import build
from mmrep.study.report.facts import Facts
from mmrep.study.report.html import html_text
from mmrep.study.report.markdown import markdown_text
from mmrep.study.report.plain import csv_text, terminal_text
from mmrep.study.results import COSTS, RESULTS, SCHEMA, Results
from mmrep.training.output import METRICS

_MISFITS = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


def read_results(folder: Path) -> Results:
    """Return the content of a study's results.json.

    Raises:
        ConfigError: the file is missing or has another format, or a field is missing or has another type.
    """
    place = folder / RESULTS
    require(not (folder / METRICS).exists(), f"{folder}: a run, not a study; its results are in {place}")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; a study is finished when it is there") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error})") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    require(
        schema == SCHEMA and type(schema) is int,
        f"{place}: not the results of a study in format {SCHEMA} (found {quoted(schema)}); `mmrep compare` with the "
        f"study's config writes them again without training what is finished, and `mmrep report {folder}` then reads "
        "them",
    )
    results: Results = read_value(Results, content, f"{place}:")
    _check_whole(results, place)
    return results


def _check_whole(results: Results, place: Path) -> None:
    """Raise ConfigError unless all runs have the same metrics and the report can be made."""
    runs = results["runs"]
    require(bool(runs), f"{place}: runs: expected at least one")
    metrics = [None, *runs[0]["metrics"]]
    require(results["primary"] in metrics, f"{place}: primary: {quoted(results['primary'])} is no metric of the runs")
    for i, run in enumerate(runs):
        for name, values in (("metrics", run["metrics"]), ("chance", run["chance"]), ("items", run["items"])):
            require(
                values.keys() == runs[0]["metrics"].keys(), f"{place}: runs[{i}].{name}: other metrics than runs[0]"
            )
        require(set(COSTS) <= run["cost"].keys(), f"{place}: runs[{i}].cost: expected {', '.join(COSTS)}")
    try:
        inside.section(Facts(results))
    except _MISFITS as error:
        raise ConfigError(f"{place}: diagnostics: {type(error).__name__}: {quoted(str(error))}") from error
    try:
        report = build(results)
        terminal_text(report), markdown_text(report), csv_text(report.data), html_text(report)
    except _MISFITS as error:
        raise ConfigError(f"{place}: its parts do not fit: {type(error).__name__}: {quoted(str(error))}") from error
