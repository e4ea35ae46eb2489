"""The page of a report: well-formed, readable without a script, and usable in a browser (where there is a Chromium)."""

import itertools
import math
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from synthetic import full_results, study_results

from mmrep.study.report import write_report
from mmrep.study.report.build import build
from mmrep.study.report.citing import methods
from mmrep.study.report.facts import Facts
from mmrep.study.report.html import html_text

VOID = {"meta", "link", "img", "input", "br", "hr", "wbr"}
FULL = full_results(seeds=20)


class Page(HTMLParser):
    """The elements of a page, after checking that every one is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag}: an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page() -> str:
    return html_text(build(FULL))


def test_the_page_is_well_formed_and_labelled(page: str) -> None:
    for text in (
        page,
        html_text(build(study_results(seeds=1))),
        html_text(build(study_results(seeds=2, heads=("avg",)))),
    ):
        elements = Page(text).elements
        ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        links = {attributes["href"][1:] for tag, attributes in elements if tag == "a"}
        assert links <= set(ids)
        for tag, attributes in elements:
            if tag == "svg":
                assert attributes.get("aria-hidden") == "true" or attributes["role"] == "img"
                assert {attributes.get("aria-labelledby"), attributes.get("aria-describedby")} <= {None, *ids}
            if tag == "th":
                assert attributes["scope"] in ("row", "col")
            if tag == "img":
                assert attributes["alt"] and attributes["src"].startswith("data:image/")
        assert sum(tag == "h1" for tag, _ in elements) == 1


def test_the_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert len(page) < 3_000_000
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "@import" not in page and "url(" not in page
    assert page.count("<script>") == 1 and "default-src 'none'" in page


def test_large_studies_stay_small() -> None:
    axes: dict[str, list[Any]] = {"optim.lr": [1e-4, 3e-4, 1e-3]}
    heads = ("cls", "avg", "max", "gem", "ggem", "relu_avg", "lse", "map", "simpool", "avg_mlp")
    assert len(html_text(build(study_results(heads, seeds=20, axes=axes)))) < 3_000_000


def luminance(colour: list[float]) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def oklab(rgb: list[float]) -> list[float]:
    r, g, b = (min(max(value, 0), 1) for value in rgb)
    cones = (
        0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b,
        0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b,
        0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b,
    )
    x, y, z = (value ** (1 / 3) for value in cones)
    return [
        0.2104542553 * x + 0.793617785 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.428592205 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.808675766 * z,
    ]


VISION = {  # Machado et al. 2009, severity 1, on linear RGB
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_differ_for_everyone(theme: int, page: str) -> None:
    def linear(text: str) -> list[float]:
        values = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]

    named = {
        name: linear(both[theme]) for name, *both in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", page)
    }

    def contrast(a: str, b: str) -> float:
        light, dark = sorted((luminance(named[a]), luminance(named[b])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert all(contrast(text, "paper") >= 4.5 for text in ("ink", "soft", "link", "good"))
    assert contrast("warn", "warnpaper") >= 4.5 and contrast("soft", "raised") >= 4.5
    arms = [f"arm{i}" for i in range(9)]
    assert all(contrast(arm, "paper") >= 3 for arm in arms)
    for name, matrix in VISION.items():
        seen = [oklab([sum(w * v for w, v in zip(row, named[arm], strict=True)) for row in matrix]) for arm in arms]
        least = min(math.dist(a, b) for a, b in itertools.combinations(seen, 2))
        assert least > (0.05 if name == "tritanopia" else 0.07), name


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("study"), FULL)


class Visit:
    """An open page, with all that it asked for and complained about."""

    def __init__(self, browser: Any, place: Path, width: int = 1280, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(place.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith("data:")] == self.requests[:1]
        self.context.close()


def column(page: Any, index: int) -> list[str]:
    rows = page.locator("#arms table").first.locator("tbody tr:visible")
    return [rows.nth(i).locator("td, th").nth(index).inner_text().strip() for i in range(rows.count())]


def test_sorting_and_filtering(browser: Any, place: Path) -> None:
    with Visit(browser, place) as page:
        table = page.locator("#arms table").first
        before = column(page, 0)
        head = table.locator("thead th").nth(1)
        head.locator("button.sort").click()
        assert head.get_attribute("aria-sort") == "descending"
        values = [float(text) for text in column(page, 1)]
        assert values == sorted(values, reverse=True)
        head.locator("button.sort").press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert [float(text) for text in column(page, 1)] == sorted(values)
        assert set(column(page, 0)) == set(before)
        differences = table.locator("thead th").nth(4)
        differences.locator("button.sort").click()
        assert column(page, 4)[-1] == "–", "missing values come last"
        assert page.locator("#arms [aria-sort]").count() == 1
        page.locator("#arms .filter input").fill("better gg")
        assert column(page, 0) == ["ggem"]
        assert page.locator("#arms .filter [role=status]").inner_text() == "1 of 10 rows"
        page.locator("#arms .filter input").fill("")
        assert len(column(page, 0)) == 10


def test_themes_and_definitions(browser: Any, place: Path) -> None:
    with Visit(browser, place, color_scheme="light") as page:
        paper = "getComputedStyle(document.body).backgroundColor"
        seen = [page.evaluate(paper)]
        for _ in range(3):
            page.locator("button.theme").click()
            seen.append(page.evaluate(paper))
        assert seen == ["rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(20, 23, 27)", "rgb(255, 255, 255)"]
        term = page.locator("#arms a.term", has_text="SD").first
        term.focus()
        assert "Standard deviation over the seeds" in page.locator("#tip").inner_text()
        page.keyboard.press("Escape")
        assert not page.locator("#tip").is_visible()
        page.locator("details.badge summary").first.press("Enter")
        assert "same batches" in page.locator("details.badge p").first.inner_text()
    with Visit(browser, place, color_scheme="dark") as page:
        assert page.evaluate(paper) == "rgb(20, 23, 27)"


def test_copy_buttons_copy_the_text(browser: Any, place: Path) -> None:
    with Visit(browser, place, permissions=["clipboard-read", "clipboard-write"]) as page:
        buttons = page.locator("button.copy")
        assert buttons.count() == 4
        for i, expected in ((0, FULL["command"]), (1, methods(Facts(FULL)))):
            buttons.nth(i).click()
            buttons.nth(i).filter(has_text="Copied").wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == expected


@pytest.mark.parametrize("name", ["full", "axes"])
def test_phones_scroll_down_only(browser: Any, place: Path, name: str, tmp_path: Path) -> None:
    if name == "axes":
        place = write_report(tmp_path, study_results(seeds=3, axes={"model.image.patch_dropout": [0.0, 0.25, 0.5]}))
    with Visit(browser, place, width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.locator("svg.narrow").first.is_visible() and not page.locator("svg.wide").first.is_visible()


def test_everything_is_readable_without_script(browser: Any, place: Path) -> None:
    with Visit(browser, place, java_script_enabled=False) as page:
        text = page.locator("main").inner_text()
        assert "ggem against avg" in text and FULL["command"] in text
        assert page.locator("button").count() == 0 and page.locator("input").count() == 0
        page.locator("#arms a.term", has_text="SD").first.click()
        assert page.url.endswith("#term-sd")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["full", "long names"])
def test_labels_of_charts_lie_inside_them(browser: Any, place: Path, name: str, width: int, tmp_path: Path) -> None:
    if name == "long names":
        heads = (
            "avg",
            "concat_ggem_groups-12_learn-false_and_another",
            "ggem_groups-12_learn-false_p-3.0_negatives-keep",
        )
        place = write_report(tmp_path, study_results(heads, seeds=4))
    with Visit(browser, place, width=width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        outside = page.evaluate(
            """() => [...document.querySelectorAll('svg.chart')].flatMap(chart => {
                const box = chart.getBoundingClientRect();
                const out = r => r.left < box.left - 3 || r.right > box.right + 6 || r.top < box.top - 3
                    || r.bottom > box.bottom + 3;
                return [...chart.querySelectorAll('text')].filter(t => out(t.getBoundingClientRect()))
                    .map(t => chart.querySelector('title').textContent + ': ' + t.textContent);
            })"""
        )
        assert outside == []
