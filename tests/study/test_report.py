"""The report of a study: one model of the data, and renderers that agree on its numbers."""

import csv
import io
import json
import math
import re
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from mutations import ABSENT, VALUES, mutated, places
from synthetic import HEADS, full_results, study_results

from mmrep.config.checks import ConfigError
from mmrep.study.report import markdown, read_results, terminal, write_report
from mmrep.study.report.answer import badges, sentence
from mmrep.study.report.build import build
from mmrep.study.report.citing import latex
from mmrep.study.report.cost import pareto
from mmrep.study.report.facts import Facts
from mmrep.study.report.html import html_text
from mmrep.study.report.model import Report, Table, shown
from mmrep.study.report.plain import csv_text
from mmrep.study.report.running import limit_lines
from mmrep.study.report.svg import Scale, spaced, swarm, tick_texts, ticks

VARIANTS: dict[str, dict[str, Any]] = {
    "one seed": {"seeds": 1},
    "three seeds": {"seeds": 3},
    "interim": {
        "seeds": 3,
        "interim": True,
        "missing": 2,
        "failed": [{"pool": "gem", "seed": 2, "message": "the loss is nan at step 300: lower optim.lr"}],
    },
    "screen": {"kind": "screen", "patch_tokens": 16},
    "no diagnostics": {"inside": False, "curves": {}},
    "no primary": {"primary": None},
    "one arm": {"heads": ("avg",)},
    "unpaired": {"paired": False, "unpaired_because": "gem and avg of seed 0 saw other batches", "differences": []},
    "axes": {
        "heads": ("cls", "avg", "max", "gem", "ggem", "map"),
        "axes": {"optim.lr": [1e-4, 3e-4, 1e-3, 3e-3, 0.01]},
    },
}


def variant(name: str) -> Any:
    return study_results(**{"seeds": 5} | VARIANTS[name])


def tables(report: Report) -> list[Table]:
    return [block for section in report.sections for block in section.blocks if isinstance(block, Table)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_study_has_all_four_forms(name: str, tmp_path: Path) -> None:
    results = variant(name)
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_results(tmp_path) == results
    assert write_report(tmp_path, results) == tmp_path / "report.html"
    report, page = build(results), (tmp_path / "report.html").read_text()
    text, shown_text = (tmp_path / "report.md").read_text(), terminal(results)
    for answer in report.answers:
        assert answer.text.split(":")[0].replace("_", r"\_") in text.replace(r"\_", "_").replace("_", r"\_")
    assert all(len(line) <= 80 for line in shown_text.splitlines())
    assert shown_text.replace("\n", " ").startswith(report.answers[0].text)
    for table in tables(report):
        assert all(set(row) >= {"pool"} or table.arm == "" for row in table.rows)
        assert len({column.key for column in table.columns}) == len(table.columns)
    for section in report.sections:
        assert f'id="{section.key}"' in page
        assert f"## {section.title}\n" in text or section.key == "answer"


@pytest.mark.parametrize("name", VARIANTS)
def test_renderers_agree_on_every_number(name: str) -> None:
    results = variant(name)
    report = build(results)
    text, page = markdown(results).replace("\\", ""), re.sub(r"<[^>]+>", "\n", html_text(report).replace("<wbr>", ""))
    for table in tables(report):
        for row in table.rows:
            for column in table.columns:
                cell = " ".join(shown(column, row.get(column.key)).split())
                assert cell in text, (table.title, column.key)
                assert cell.replace("<", "&lt;") in page or cell.replace("'", "&#39;") in page, (
                    table.title,
                    column.key,
                )
    rows = list(csv.DictReader(io.StringIO(csv_text(report.data))))
    for run in results["runs"]:
        for metric, value in run["metrics"].items():
            (row,) = [r for r in rows if (r["metric"], r["pool"]) == (metric, run["pool"])]
            assert float(row[f"seed {run['seed']}"]) == value
    for row in rows:
        values = [run["metrics"][row["metric"]] for run in results["runs"] if run["pool"] == row["pool"]]
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values))
        assert f"{100 * float(row['mean']):.2f}" in page
    short = terminal(results)
    if results["primary"]:
        for row in rows:
            if row["metric"] == results["primary"]:
                assert f"{100 * float(row['mean']):.2f}" in short


def difference(**fields: Any) -> dict[str, Any]:
    results = study_results(heads=("avg", "ggem"), seeds=20)
    return {**results["differences"][0], "metric": "tiny_imagenet/acc1", **fields}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {
                "mean": 0.003,
                "low": -0.002,
                "high": 0.008,
                "verdict": "cannot tell",
                "seeds_needed": 44,
                "target": 0.003,
            },
            "+0.30 [−0.20, +0.80] points: cannot tell; 44 seeds are needed for 0.3.",
        ),
        (
            {"mean": 0.03, "low": -0.02, "high": 0.08, "verdict": "cannot tell", "seeds_needed": 9, "target": 0.003},
            "+3.0 [−2.0, +8.0] points: cannot tell.",
        ),
        ({"mean": 0.02, "low": 0.011, "high": 0.029, "verdict": "better"}, "+2.0 [+1.1, +2.9] points: better."),
        (
            {"mean": -0.002, "low": -0.003, "high": -0.001, "verdict": "worse", "margin": 0.005},
            "−0.20 [−0.30, −0.10] points: worse, but by less than the margin.",
        ),
        (
            {"mean": 0.0, "low": -0.004, "high": 0.004, "verdict": "equivalent", "margin": 0.005},
            "0.00 [−0.40, +0.40] points: equivalent within ±0.5 points.",
        ),
        (
            {"mean": 0.012, "low": None, "high": None, "verdict": None, "seeds": 2},
            "+1.2 points in 2 seeds: no verdict, which takes at least 3 seeds.",
        ),
    ],
)
def test_the_sentence_says_what_was_found(fields: dict[str, Any], expected: str) -> None:
    start = "On tiny_imagenet (top-1 accuracy), ggem against avg: "
    assert sentence(difference(**fields), interim=False).text == start + expected


def test_interim_verdicts_are_marked_everywhere() -> None:
    results = variant("interim")
    report = build(results)
    assert all("(interim)" in answer.verdict for answer in report.answers)
    assert [badge.state for badge in report.badges if badge.label == "interim: 12 of 15 runs"] == ["warn"]
    for text in (terminal(results), markdown(results), html_text(report)):
        assert "(interim)" in text and "interim: 12 of 15 runs" in text
    assert "the loss is nan at step 300" in html_text(report)
    assert any("not finished" in line for line in limit_lines(Facts(results)))


def test_controls_must_tie() -> None:
    results = study_results(seeds=5, controls=[{"a": "gem", "b": "avg", "text": "the same head again"}])
    entry = next(d for d in results["differences"] if d["a"] == "gem" and d["metric"] == results["primary"])
    for low, high, expected in ((-0.001, 0.002, "control tied"), (0.001, 0.002, "control did not tie")):
        entry |= {"low": low, "high": high}
        assert expected in [badge.label for badge in badges(Facts(results))]
    entry |= {"low": None, "high": None}
    assert "control not judged" in [badge.label for badge in badges(Facts(results))]
    assert "no control" in [badge.label for badge in badges(Facts(variant("three seeds")))]


def test_limits_come_from_the_study() -> None:
    def lines(**fields: Any) -> str:
        return "\n".join(limit_lines(Facts(study_results(**fields))))

    assert "It has 1 seed." in lines(seeds=1)
    assert "It has 5 seeds" in lines(seeds=5) and "seeds. An interval" not in lines(seeds=12)
    assert "frozen" in lines(kind="screen") and "frozen" not in lines()
    assert "A demonstration: 16 patch tokens" in lines(patch_tokens=16) and "demonstration" not in lines(
        patch_tokens=64
    )
    assert "one item is 0.02 points" in lines()


def test_arms_of_one_head_share_its_colour() -> None:
    looks = Facts(variant("axes")).looks
    assert len({(look.colour, look.shape) for look in looks.values()}) == len(looks) == 30
    assert len({look.colour for arm, look in looks.items() if arm.startswith("ggem,")}) == 1
    assert looks["avg,lr=0.0001"].colour == 0
    many = Facts(full_results(seeds=1)).looks
    assert len(set(many.values())) == len(HEADS)


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[31m|`$\\"
    results = study_results(heads=("avg", "ggem"), seeds=3)
    results = json.loads(
        json.dumps(results).replace('"ggem"', json.dumps(bad)).replace('"ggem-', json.dumps(bad)[:-1] + "-")
    )
    item = {
        "caption": bad,
        "image": "https://example.org/x.png",
        "maps": {bad: "javascript:alert(1)"},
        "answers": {bad: bad},
    }
    results |= {
        "name": bad, "command": f"mmrep compare {bad}", "unequal": [bad], "history": [{"time": bad, "text": bad}],
        "failed": [{"pool": bad, "seed": 9, "message": bad}], "controls": [{"a": bad, "b": "avg", "text": bad}],
        "pictures": [{"title": bad, "a": bad, "b": "avg", "kind": "classification", "items": [item]}],
    }  # fmt: skip
    results["diagnostics"] |= {"dataset": bad, "maps": f"../{bad}"}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = write_report(tmp_path, read_results(tmp_path)).read_text()
    assert page.count("<script") == 1 and "<img" not in page and "\x1b" not in page
    assert "example.org" not in page and "javascript:" not in page
    assert "&lt;script&gt;alert(1)" in page
    for text in ((tmp_path / "report.md").read_text(), terminal(results), (tmp_path / "results.csv").read_text()):
        assert "\x1b" not in text
    outside = re.sub(r"```.*?```", "", (tmp_path / "report.md").read_text(), flags=re.S)
    assert not re.search(r"(?<!\\)<script", outside)


def test_a_spreadsheet_takes_nothing_for_a_formula() -> None:
    results = json.loads(json.dumps(study_results(seeds=1)).replace('"ggem"', '"=cmd()"').replace('"ggem-', '"=cmd()-'))
    assert "\ntiny_imagenet/acc1,'=cmd()," in csv_text(build(results).data)


def test_text_for_latex_has_no_commands() -> None:
    assert latex("a_b & 50% \\input{x}") == r"a\_b \& 50\% \textbackslash{}input\{x\}"


def test_pareto_front() -> None:
    assert pareto([(1, 1), (2, 3), (3, 2), (3, 3), (1, 1)]) == [True, True, False, False, True]


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0, 1), (-3.2, 11), (0.2801, 0.2809), (-1e-4, 1e-4), (99.2, 1e7)):
        found = ticks(low, high, 5)
        assert 2 <= len(found) <= 8 and all(low <= value <= high for value in found)
        assert len(set(tick_texts(found, share=False))) == len(found)
    assert tick_texts([-0.005, 0.0, 0.005], share=True, signs=True) == ["−0.5", "0.0", "+0.5"]
    assert Scale(0, 10, 0, 100)(5) == 50


def test_labels_and_dots_do_not_overlap() -> None:
    found = sorted(spaced([50, 50, 51, 90, 10], 13, 0, 200))
    assert all(b - a >= 13 for a, b in pairwise(found))
    assert spaced([50, 52], 10, 0, 200) == [46, 56], "labels lie around what they name"
    assert spaced([3, 4, 200], 10, 0, 200) == [0, 10, 200]
    assert swarm([1, 1, 1], 5, 3) == [0, 1, -1] and swarm([1, 20, 40], 5, 3) == [0, 0, 0]


def test_runs_without_numbers_cost_no_report(tmp_path: Path) -> None:
    results = study_results(seeds=3)
    results["curves"]["gem-1"][3]["loss"] = math.nan
    results["runs"][0]["metrics"]["tiny_imagenet/acc5"] = math.nan
    results["diagnostics"]["runs"]["gem-0"]["variance"]["spatial_share"][2] = math.nan
    page = write_report(tmp_path, results).read_text()
    assert not re.search(r'="[^"]*\bnan\b', page) and "better" in page
    results["runs"][0]["metrics"][results["primary"]] = math.nan
    assert "no verdicts" in write_report(tmp_path, results).read_text()


def test_the_schema_is_checked(tmp_path: Path) -> None:
    place = tmp_path / "results.json"
    place.write_text(json.dumps({**study_results(seeds=1), "schema": 2}))
    with pytest.raises(
        ConfigError, match=r"format 3 \(found 2\); `mmrep compare` with the study's config writes"
    ) as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value) and "mmrep report" in str(error.value)
    with pytest.raises(ConfigError, match="a study is finished when it is there"):
        read_results(tmp_path / "none")
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="a run, not a study"):
        read_results(tmp_path)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.long)])
def test_malformed_results_are_one_line(count: int, tmp_path: Path, unchecked: None) -> None:
    """A seeded sample of all places and values."""
    results = full_results(seeds=3, heads=("avg", "relu_avg", "gem", "ggem", "map"))
    results["curves"] = {key: records[::25] for key, records in results["curves"].items()}
    place, random = tmp_path / "results.json", Random(0)
    every = list(places(results))
    top = [path for path in every if path[0] not in ("curves", "diagnostics", "runs")]
    refused = 0
    for path in random.sample(top, count // 2) + random.sample(every, count // 2):
        place.write_text(json.dumps(mutated(results, path, random.choice([*VALUES, ABSENT]))))
        try:
            found = read_results(tmp_path)
        except ConfigError as error:
            refused += 1
            assert "results.json: " in str(error) and "\n" not in str(error) and len(str(error)) < 500
        else:
            write_report(tmp_path, found)
            assert terminal(found)
    assert refused > count / 4


def test_reports_need_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(full_results()))
    code = (
        "import sys, pathlib\nfrom mmrep.study.report import read_results, terminal, write_report\n"
        "place = pathlib.Path(sys.argv[1])\nresults = read_results(place)\nwrite_report(place, results)\n"
        "terminal(results)\nprint(sorted({'torch', 'matplotlib', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
    assert (tmp_path / "report.html").stat().st_size < 3_000_000
