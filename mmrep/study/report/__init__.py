"""The report of a study: report.html, report.md and results.csv, and tables on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mmrep.files import write_text
from mmrep.study.report.build import build
from mmrep.study.report.html import embedded, html_text
from mmrep.study.report.markdown import markdown_text
from mmrep.study.report.plain import csv_text, terminal_text
from mmrep.study.report.reading import read_results
from mmrep.study.results import RESULTS, SCHEMA, Results, metrics_of

HTML, MARKDOWN, CSV = "report.html", "report.md", "results.csv"


def terminal(results: Mapping[str, Any]) -> str:
    """Return the study as text for a terminal."""
    return terminal_text(build(cast(Results, results)))


def markdown(results: Mapping[str, Any], title: str = "") -> str:
    """Return the study as Markdown."""
    return markdown_text(build(cast(Results, {**results, "name": title or results["name"]})))


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write report.html, report.md and results.csv into the folder of a study, and return the place of the first."""
    report = build(cast(Results, results))
    write_text(folder / MARKDOWN, markdown_text(report))
    write_text(folder / CSV, csv_text(report.data))
    write_text(folder / HTML, html_text(report, embedded(report, folder)))
    return folder / HTML


__all__ = [
    "CSV", "HTML", "MARKDOWN", "RESULTS", "SCHEMA", "markdown", "metrics_of", "read_results", "terminal",
    "write_report",
]  # fmt: skip
