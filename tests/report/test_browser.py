"""The page in a browser: it sorts by keyboard, asks the network for nothing, and passes axe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["light-1280", "dark-390"])
def page(request: pytest.FixtureRequest, browser: Any, written: tuple[Path, Any]) -> Iterator[Any]:
    scheme, width = request.param
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    opened.asked, opened.complaints = [], []
    opened.on("request", lambda r: opened.asked.append(r.url))
    opened.on("console", lambda m: opened.complaints.append(m.text))
    opened.on("pageerror", lambda e: opened.complaints.append(str(e)))
    opened.goto((written[0] / "index.html").as_uri())
    yield opened
    opened.close()


def test_a_column_is_sorted_by_keyboard(page: Any) -> None:
    button = page.locator("#main thead button", has_text="accuracy").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    assert accuracies(page) == sorted(accuracies(page), reverse=True)
    page.keyboard.press("Space")
    assert button.locator("xpath=..").get_attribute("aria-sort") == "ascending"
    assert accuracies(page) == sorted(accuracies(page))
    assert page.locator("#main [aria-sort=ascending], #main [aria-sort=descending]").count() == 1


def accuracies(page: Any) -> list[float]:
    cells = page.locator('#main td[data-metric="accuracy"]')
    return [float(cell.get_attribute("data-value")) for cell in cells.all()]


def test_empty_cells_come_last_both_ways(page: Any) -> None:
    button = page.locator("#main thead button").last  # the denoiser's, which one model has
    for _ in range(2):
        button.click()
        first = page.locator("#main tbody tr").first.locator("th").inner_text()
        assert first.startswith("cdn-digits")


def test_nothing_is_fetched_and_nothing_complains(page: Any) -> None:
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in page.asked if url.startswith("file:")]) == 1
    assert page.complaints == []


def test_the_page_is_no_wider_than_the_window(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_axe_finds_nothing(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    results = axe.Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
