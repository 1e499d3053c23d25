"""The report in a real browser: silent, alone, and legible on a screen and on a phone, in light and in dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cp_agents.profiler import Profiler
from cp_agents.report.gather import build_report
from cp_agents.report.render import render_report
from cp_agents.routing import ReviewPolicy
from cp_agents.stores.traces import TraceStore
from cp_agents.taxonomy import load_taxonomy

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jinja2")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium at hand")

LEAST_PX = 9.0
USERS = 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with gold of every tag of the taxonomy, and one without gold and records."""
    folder = tmp_path_factory.mktemp("browser")
    themes = [
        "newborn sleep schedule",
        "pension plan",
        "exam revision",
        "my wife",
        "nurse night shift",
        "code review",
    ]
    records = [
        {
            "user_id": f"u{i}",
            "watched": [[themes[(i + k) % 6], 5 + i] for k in range(1 + i % 3)],
            "posted": ["a_very_long_word_without_any_space_" * 8, "نص عربي طويل", "<b>bold</b> 🎉 尿布"],
        }
        for i in range(USERS)
    ]
    attributes = load_taxonomy().attributes
    gold = {f"u{i}": {a.name: a.names[i % len(a.names)] for a in attributes} for i in range(USERS)}
    with TraceStore(folder / "t.db") as store:
        policy = ReviewPolicy(audit_share=0.1)
        Profiler(store=store, samples=4, review=policy, run="a_run_" + "x" * 60).profile_many(records)
        made = {
            "gold": render_report(build_report(store, gold=gold)),
            "bare": render_report(build_report(store, records=False)),
        }
    paths = {}
    for name, page in made.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(page, encoding="utf-8")
    return paths


class Opened:
    """A page in a window of its own, and all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str, **options: Any) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


SIZES = """() => [...document.querySelectorAll('svg text')]
  .filter(t => t.getBoundingClientRect().width > 0)
  .map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a)"""
OUTSIDE = """() => [...document.querySelectorAll('svg text')]
  .filter(t => t.getBoundingClientRect().width > 0)
  .filter(t => {
    const box = t.ownerSVGElement.getBoundingClientRect(), own = t.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.top < box.top - 1 || own.bottom > box.bottom + 1;
  }).map(t => t.textContent)"""
RIGHTS = """() => [...document.querySelectorAll('main > section, figure, .case')]
  .filter(e => e.getClientRects().length).map(e => e.getBoundingClientRect().right)"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["gold", "bare"])
def test_silent_alone_and_legible(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    with Opened(browser, pages[name], width, scheme) as opened:
        page = opened.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert max(page.evaluate(RIGHTS)) <= width
        sizes = page.evaluate(SIZES)
        assert len(sizes) > 50
        assert min(sizes) >= LEAST_PX
        assert page.evaluate(OUTSIDE) == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert dark == (scheme == "dark")
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        assert opened.said == []
        assert opened.asked == [pages[name].as_uri()]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_is_seen_at_either_width(browser: Any, pages: dict[str, Path], width: int) -> None:
    """Of a matrix in two forms one shows; of everything else all, with a height."""
    with Opened(browser, pages["gold"], width, "light") as opened:
        figures = opened.page.query_selector_all("figure")
        assert len(figures) > 20
        for figure in figures:
            drawings = figure.query_selector_all("svg.chart")
            shown = [d for d in drawings if d.is_visible()]
            assert len(shown) == (1 if drawings else 0)
            for drawing in shown:
                box = drawing.bounding_box()
                assert box["height"] > 50
                assert box["width"] > 200


def test_readable_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["gold"], 390, "light", java_script_enabled=False) as opened:
        page = opened.page
        assert page.locator(".case").first.is_visible()
        assert page.locator("#confidence svg.chart").first.is_visible()
        assert not page.locator("#theme").is_visible()
        assert not page.locator(".filter").is_visible()
        assert opened.said == []


def test_toggle_sort_and_filter(browser: Any, pages: dict[str, Path]) -> None:
    with Opened(browser, pages["gold"], 1280, "light") as opened:
        page = opened.page
        assert page.locator("#theme").text_content() == "Dark"
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert page.locator("#theme").text_content() == "Light"

        table = page.locator("#accuracy table.sortable").first
        table.locator("thead button").nth(1).click()
        column = "t => [...t.tBodies[0].rows].map(r => parseFloat(r.cells[1].dataset.v))"
        shown = table.evaluate(column)
        assert shown == sorted(shown, reverse=True)
        table.locator("thead button").nth(1).click()
        assert table.evaluate(column) == sorted(shown)

        page.locator("#attribute").select_option("age")
        page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
        cases = page.locator(".case:visible")
        assert cases.count() > 0
        assert {cases.nth(i).get_attribute("data-attribute") for i in range(cases.count())} == {"age"}
        assert opened.said == []
