"""report.html of 2,000 rollouts in a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minicollab.report import write_report
from tests.synthetic_run import NASTY, write_run

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on the PATH"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, tasks=250, held_out=60)
    rows = (folder / "rollouts.jsonl").read_text("utf-8").count("\n")
    assert rows == 2000
    return write_report(folder, folder / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Chromium's own sandbox refuses to run as root.
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        with started.chromium.launch(executable_path=CHROMIUM, args=root) as launched:
            yield launched


class Opened:
    """A report in a window, and what it said and asked for."""

    def __init__(self, browser: Any, report: Path, width: int = 1280, scheme: str = "light"):
        self.page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.locator(".task").first.wait_for()

    def count(self) -> str:
        return self.page.locator("#count").inner_text()

    def colour(self) -> str:
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_it_is_small_enough(report: Path) -> None:
    assert report.stat().st_size < 20e6


@pytest.mark.parametrize("width", [1280, 390])
def test_filtered_and_a_tree_opened(browser: Any, report: Path, width: int) -> None:
    opened = Opened(browser, report, width)
    page = opened.page
    assert page.locator(".verdict").bounding_box()["y"] < 844
    assert opened.count() == "60 of 60 tasks"
    page.select_option("#part", "training")
    assert opened.count() == "250 of 250 tasks"
    assert page.locator(".task").count() == 30, "no more than are looked at"
    page.locator("#more").click()
    assert page.locator(".task").count() == 60
    page.fill("#gap", "10")
    assert opened.count() == "0 of 250 tasks"
    page.fill("#gap", "0.5")
    assert 0 < int(opened.count().split()[0]) < 250
    page.fill("#gap", "")
    page.fill("#search", "poem 17.")
    assert opened.count() == "1 of 250 tasks"
    page.fill("#search", "")
    page.select_option("#only", "a failure")
    assert opened.count() == "1 of 250 tasks"

    assert page.locator(".message").count() == 0, "nothing is drawn before it is asked for"
    page.locator(".task > summary").click()
    page.locator(".turn").first.wait_for()
    assert page.locator(".turn").count() == 2 and page.locator(".candidate").count() == 8
    assert page.locator(".columns.two > section").count() == 4, "chosen and rejected, twice"
    candidate = page.locator(".candidate").nth(1)
    assert "±" in candidate.locator("summary").inner_text()
    candidate.locator("> summary").click()
    candidate.locator("> .message").wait_for()
    assert NASTY.replace("\u2028", "") in candidate.locator("> .message p").inner_text().replace("\u2028", "")
    candidate.locator(".future > summary").first.click()
    judged = candidate.locator(".judged").inner_text()
    assert "Does it ask? (reply 2)" in judged and "0." in judged

    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert opened.complaints == [] and opened.requests == [report.as_uri()]
    page.close()


def test_arms_side_by_side(browser: Any, report: Path) -> None:
    opened = Opened(browser, report)
    opened.page.select_option("#only", "a failure")
    assert opened.count() == "1 of 60 tasks"
    opened.page.locator(".task > summary").click()
    opened.page.locator(".columns").first.wait_for()
    heads = opened.page.locator(".columns.three > section > b").all_inner_texts()
    assert [head.split(",")[0] for head in heads] == ["base", "proactive", "trained"] * 2
    assert "Failed: no verdict" in opened.page.locator(".columns.three").first.inner_text()
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Any, report: Path, scheme: str) -> None:
    opened = Opened(browser, report, scheme=scheme)
    paper = {"light": "rgb(252, 252, 250)", "dark": "rgb(22, 22, 21)"}
    other = "dark" if scheme == "light" else "light"
    assert opened.colour() == paper[scheme]
    opened.page.locator("#theme").click()
    assert opened.colour() == paper[other]
    opened.page.locator("#theme").click()
    assert opened.colour() == paper[scheme]
    opened.page.close()


def test_what_gets_in_can_reach_nobody(browser: Any, report: Path) -> None:
    opened = Opened(browser, report)
    opened.page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x'}))")
    opened.page.evaluate("fetch('http://127.0.0.1:9/x').catch(() => 0)")
    script = "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
    opened.page.evaluate(script)
    assert opened.page.evaluate("window.ran") is None
    assert len([said for said in opened.complaints if "Content Security Policy" in said]) >= 3
    opened.page.close()
