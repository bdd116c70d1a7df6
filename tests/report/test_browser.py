"""The page in a browser: it sorts by keyboard, asks the network for nothing, and passes axe."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_fakes as fakes

from robustgen import store
from robustgen.disk import write_json
from robustgen.report.render import render
from robustgen.report.summary import summarise

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
    assert accuracies(page) == [sorted(kind, reverse=True) for kind in accuracies(page)]
    page.keyboard.press("Space")
    assert button.locator("xpath=..").get_attribute("aria-sort") == "ascending"
    assert accuracies(page) == [sorted(kind) for kind in accuracies(page)]
    assert page.locator("#main [aria-sort=ascending], #main [aria-sort=descending]").count() == 1


def accuracies(page: Any) -> list[list[float]]:
    """By kind of model, in the order of the page."""
    found = [body.locator('td[data-metric="accuracy"]').all() for body in page.locator("#main tbody").all()]
    return [[float(cell.get_attribute("data-value")) for cell in cells] for cells in found]


def test_empty_cells_come_last_both_ways(page: Any) -> None:
    button = page.locator("#main thead button", has_text="σ").last  # the denoiser's, which one model has
    for _ in range(2):
        button.click()
        first = page.locator("#main tbody tr[data-name]").first.locator("th").inner_text()
        assert first.startswith("cdn-digits")


def shown(page: Any) -> list[str]:
    return [row.get_attribute("data-name") for row in page.locator("#main tr[data-name]:visible").all()]


def test_models_are_grouped_and_filtered(page: Any) -> None:
    assert shown(page) == ["cdn-digits", "softmax-digits", "pgd-at-digits", "my-model"]  # the joint one first
    assert page.locator("#main .kind:visible").all_inner_texts() == ["generative", "discriminative"]
    page.locator("#filter").fill("digits discriminative")
    assert shown(page) == ["softmax-digits", "pgd-at-digits"]
    assert page.locator("#main .kind:visible").all_inner_texts() == ["discriminative"]
    page.locator("#filter").fill("")
    assert len(shown(page)) == 4


def test_columns_are_hidden_with_their_title(page: Any) -> None:
    before = page.locator("#main tbody td:visible").count()
    page.locator(".picker summary").click()
    box = page.locator(".picker input").first
    box.uncheck()
    assert page.locator('#main td[data-metric="accuracy"]:visible').count() == 0
    assert page.locator("#main thead th[scope=colgroup]:visible").first.inner_text() != "Clean"
    assert page.locator("#main tbody td:visible").count() < before
    box.check()
    assert page.locator("#main tbody td:visible").count() == before


def test_a_baseline_shows_the_paired_tests_of_the_page(page: Any, written: tuple[Path, Any]) -> None:
    page.locator("#baseline").select_option("pgd-at-digits")
    own = page.locator('#main td[data-model="pgd-at-digits"][data-metric="accuracy"] .value').inner_text()
    metrics = {m["model"]: m["value"] for m in written[1]["metrics"] if m["metric"] == "accuracy"}
    assert own == f"{100 * metrics['pgd-at-digits']:.1f}"
    (test,) = [
        t for t in written[1]["comparisons"]
        if t["metric"] == "accuracy" and {t["model_a"], t["model_b"]} == {"pgd-at-digits", "my-model"}
    ]  # fmt: skip
    sign = 1 if test["model_a"] == "my-model" else -1
    cell = page.locator('#main td[data-model="my-model"][data-metric="accuracy"]')
    value, interval = (
        cell.locator(f".{part}").inner_text().replace("−", "-") for part in ("value", "interval")
    )
    assert float(value) == pytest.approx(100 * sign * test["difference"], abs=0.051)
    low, high = sorted(100 * sign * test[end] for end in ("ci_low", "ci_high"))
    assert [float(end) for end in interval.split(" to ")] == pytest.approx([low, high], abs=0.051)
    assert ("real" in cell.get_attribute("class")) == (test["p_holm"] < 0.05)
    page.locator("#baseline").select_option("")
    assert cell.locator(".value").inner_text() == f"{100 * metrics['my-model']:.1f}"


@pytest.mark.parametrize("kind", ["csv", "tex", "md"])
def test_the_table_as_it_stands_is_downloaded(page: Any, kind: str, tmp_path: Path) -> None:
    page.locator("#filter").fill("softmax")
    with page.expect_download() as download:
        page.locator(f"[data-format={kind}]").click()
    assert download.value.suggested_filename == f"robustgen.{kind}"
    download.value.save_as(tmp_path / "table")
    text = (tmp_path / "table").read_text()
    value = page.locator('#main td[data-model="softmax-digits"][data-metric="accuracy"] .value').inner_text()
    assert value in text
    assert "my-model" not in text
    columns = page.locator("#main thead tr:last-child th").count()
    if kind == "csv":
        head, row = csv.reader(text.splitlines())
        assert len(head) == len(row) == 2 * columns - 1
        assert (row[0], row[head.index("Clean: accuracy")]) == ("softmax-digits", value)
    if kind == "tex":
        assert text.count("&") == 2 * (columns - 1)
        assert not re.search(r"(?<!\\\\)[%_#]", text)
    if kind == "md":
        assert {line.count(" | ") for line in (text.splitlines()[0], text.splitlines()[2])} == {columns - 1}


def test_a_table_of_differences_says_so_where_it_goes(page: Any, tmp_path: Path) -> None:
    page.locator("#baseline").select_option("pgd-at-digits")
    with page.expect_download() as download:
        page.locator("[data-format=csv]").click()
    download.value.save_as(tmp_path / "table")
    head, *rows = csv.reader((tmp_path / "table").read_text(encoding="utf-8").splitlines())
    place = head.index("Clean: accuracy, difference to pgd-at-digits")
    by_name = {row[0]: row for row in rows}
    assert by_name["pgd-at-digits"][place] == ""
    shown = page.locator('#main td[data-model="my-model"][data-metric="accuracy"] .value').inner_text()
    assert by_name["my-model"][place] == shown.replace("−", "-")
    cost = next(i for i, title in enumerate(head) if title.startswith("Cost"))
    assert "difference" not in head[cost]
    assert by_name["pgd-at-digits"][cost]


def test_light_and_dark_are_switched(page: Any) -> None:
    def paper() -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    before = paper()
    page.locator("#theme").click()
    assert paper() != before
    page.locator("#theme").click()
    assert paper() == before


def test_what_is_closed_is_printed(page: Any) -> None:
    def seen() -> list[bool]:
        parts = page.locator("main details:not(.picker) > :not(summary)")
        return parts.evaluate_all("all => all.map((part) => part.checkVisibility() && part.clientHeight > 0)")

    assert len(seen()) >= 5
    assert not any(seen())
    page.emulate_media(media="print")
    assert all(seen())


def test_a_page_that_was_switched_to_dark_is_printed_on_white(page: Any) -> None:
    page.evaluate("document.documentElement.style.colorScheme = 'dark'")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_reader_who_comes_back_finds_tools_and_table_in_agreement(page: Any) -> None:
    page.locator("#filter").fill("joint")
    page.locator(".picker summary").click()
    page.locator(".picker input").first.uncheck()
    page.locator("#baseline").select_option(index=1)
    page.goto("about:blank")
    page.go_back()
    shown = page.locator("#main tbody tr[data-name]:visible").count()
    assert shown == page.locator("#main tbody tr[data-name]").count()
    assert page.locator("#filter").input_value() == page.locator("#baseline").input_value() == ""
    assert page.locator(".picker input:not(:checked)").count() == 0


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


# --- hostile names, and a large report ----------------------------------------------------------------

FOUL = [
    "<script>document.title='run'</script>",
    '"><img src=x onerror="document.title=\'run\'">',
    "../../etc/passwd",
    "😈🤖",
    "n" * 300,
    "{{ 7 * 7 }}",
    "a,b;c\td",
    "'; alert(1) //",
    "</style></title><b>x</b>",
    "${1+1}%&_#~^\\",
]


def foul_report(out: Path) -> Path:
    """The page of a report whose models, classes, data, words and messages are all foul.

    A run's names are refused when it is read (store.NAME); the page is not to lean on that.
    """
    runs = []
    for index, name in enumerate(FOUL):
        data = {**fakes.spec("m")["data"], "class_names": FOUL, "provenance": FOUL[0], "name": FOUL[1]}
        more = {"seed": index, "summary": name, "data": data}
        runs.append(fakes.write_run(out, name, folder=f"model-{index}", **more))
    content = summarise(out, runs, None, f"robustgen report {FOUL[0]}")
    doubt = {"evaluation": "autoattack-linf-0.15", "flag": "masked_gradients", "severity": "warning"}
    content["flags"] += [{"model": name, **doubt, "message": f"{name} is foul. Too."} for name in FOUL]
    write_json(out / "summary.json", content)
    return render(out)


@pytest.fixture(scope="module")
def foul(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 390, "height": 900})
    opened.complaints, opened.asked = [], []
    opened.on("console", lambda m: opened.complaints.append(m.text))
    opened.on("pageerror", lambda e: opened.complaints.append(str(e)))
    opened.on("dialog", lambda d: (opened.complaints.append(d.message), d.dismiss()))
    opened.on("request", lambda r: opened.asked.append(r.url))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "NAME", re.compile(".*", re.DOTALL))
        page = foul_report(tmp_path_factory.mktemp("foul"))
    opened.goto(page.as_uri())
    yield opened
    opened.close()


def test_hostile_names_neither_run_nor_break_the_page(foul: Any) -> None:
    assert "run" not in foul.title()[:3]
    assert foul.complaints == []
    assert len([url for url in foul.asked if not url.startswith("data:")]) == 1
    assert foul.locator("img[src=x], b:text-is('x')").count() == 0
    assert set(shown(foul)) == set(FOUL)
    assert foul.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_hostile_names_are_compared_filtered_and_downloaded(foul: Any, tmp_path: Path) -> None:
    foul.locator("#baseline").select_option(FOUL[1])
    assert (
        foul.locator("#compared").inner_text().startswith(f"Every other model as its difference to {FOUL[1]}")
    )
    foul.locator("#baseline").select_option("")
    with foul.expect_download() as download:
        foul.locator("[data-format=csv]").click()
    download.value.save_as(tmp_path / "table.csv")
    rows = list(csv.reader((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert {row[0] for row in rows[1:]} == set(FOUL)
    assert len({len(row) for row in rows}) == 1


def test_ten_models_of_a_hundred_evaluations_are_usable_in_two_seconds(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    page = fakes.large_report(tmp_path_factory.mktemp("large"))
    assert page.stat().st_size < 8e6
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    # the last thing that the page's own script does is to show the switch of colours
    opened.goto(page.as_uri(), wait_until="commit")
    opened.locator("#theme").wait_for(state="visible", timeout=2000)
    opened.locator("#filter").fill("model-3", timeout=2000)
    assert shown(opened) == ["model-3"]
    assert len(json.loads((page.parent / "summary.json").read_text())["models"]) == 10
    opened.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_screenshots(browser: Any, written: tuple[Path, Any], width: int, tmp_path: Path) -> None:
    """A picture of the first screen has ink, in more than black and white."""
    from PIL import Image

    opened = browser.new_page(viewport={"width": width, "height": 900})
    opened.goto((written[0] / "index.html").as_uri())
    opened.screenshot(path=tmp_path / "page.png")
    opened.close()
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (width, 900)
        colours = picture.convert("RGB").getcolors(2**20)
    assert colours is not None
    assert len({tuple(v // 32 for v in colour) for _, colour in colours}) > 20


def test_a_doubt_stands_where_the_number_stands(foul: Any) -> None:
    marks = foul.locator('#main td[data-evaluation="worst-linf-0.15"] a.doubt')
    assert marks.count() == len(FOUL)
    target = marks.first.get_attribute("href")
    assert foul.locator(f"{target} .severity").inner_text() == "warning"
    # the attack that is doubted has a small eps, so the worst case at a large one is doubted too
    assert foul.locator('#main td[data-metric="ece"] a.doubt').count() == 0
