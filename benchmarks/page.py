"""How long a page takes: rendering a report of 10 models and 100 evaluations from its rows, and its size.

Runs the made-up report of the browser tests; ``--pictures`` takes the screenshots of the documentation
instead, docs/report.png among them, from a published report (Chromium and the extra dev are needed).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPORT = ROOT / "reports" / "digits-linf-0.15" / "index.html"


def measure() -> None:
    sys.path.insert(0, str(ROOT / "tests" / "report"))
    import report_fakes

    from robustgen.report.render import render
    from robustgen.report.summary import gather, summarise

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        page = report_fakes.large_report(out)
        runs, n, _ = gather([out], out)
        began = time.perf_counter()
        content = summarise(out, runs, n, "robustgen report")
        middle = time.perf_counter()
        render(out)
        ended = time.perf_counter()
        size, numbers = page.stat().st_size / 1e6, len(content["metrics"])
        evaluations = len(runs[0].spec["evaluations"])
        print(f"{len(runs)} models, {evaluations} evaluations each: {numbers} numbers, {size:.1f} MB")
        print(f"summary {middle - began:.1f} s, page {ended - middle:.1f} s")
        print(f"rendered from rows in {ended - began:.1f} s (bar: 30)")


def pictures(folder: Path) -> None:
    """The first screen at 1440 and 390 pixels, light and dark, and docs/report.png."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for width, height in ((1440, 1500), (390, 1500)):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(REPORT.as_uri())
                page.screenshot(path=folder / f"page-{width}-{scheme}.png")
        browser.close()
    with Image.open(folder / "page-1440-light.png") as picture:
        picture.convert("RGB").crop((0, 0, 1440, 1180)).save(ROOT / "docs" / "report.png", optimize=True)
    print(f"{folder}, and docs/report.png: {(ROOT / 'docs' / 'report.png').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="take screenshots instead")
    given = parser.parse_args()
    pictures(given.pictures) if given.pictures else measure()
