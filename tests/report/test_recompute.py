"""Every number of the page follows from stored rows by the snippets of docs/recompute.md."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

SNIPPETS = Path(__file__).parents[2] / "docs" / "recompute.md"


class Cells(HTMLParser):
    """The data attributes of every element that has a data-value, with those of its row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []
        self.row: dict[str, str] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        data = {key.removeprefix("data-"): value or "" for key, value in attrs if key.startswith("data-")}
        if tag == "tr":
            self.row = data
        if "value" in data:
            self.found.append(self.row | data)


@pytest.fixture(scope="module")
def recomputed(written: tuple[Path, Any]) -> dict[str, Any]:
    """What the snippets leave behind when they are run in the report's folder."""
    out, _ = written
    source = "\n\n".join(
        re.findall(r"^```python\n(.*?)^```", SNIPPETS.read_text(encoding="utf-8"), re.M | re.S)
    )
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        exec(compile(source, str(SNIPPETS), "exec"), space)
    return space


def test_every_metric_with_its_interval(written: tuple[Path, Any], recomputed: dict[str, Any]) -> None:
    out, _ = written
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    theirs = {
        (m["model"], m["evaluation"], m["variant"], m["metric"]): (m["value"], m["ci_low"], m["ci_high"])
        for m in summary["metrics"]
    }
    assert recomputed["mine"].keys() == theirs.keys()
    wrong = {k: (v, recomputed["mine"][k]) for k, v in theirs.items() if recomputed["mine"][k] != near(v)}
    assert not wrong


def test_every_paired_test(written: tuple[Path, Any], recomputed: dict[str, Any]) -> None:
    _, summary = written
    assert summary["comparisons"]
    for test in summary["comparisons"]:
        key = (test["evaluation"], test["variant"], test["metric"], test["model_a"], test["model_b"])
        expected = [test[k] for k in ("difference", "ci_low", "ci_high", "p", "p_holm")]
        assert recomputed["tests"][key] == near(expected), key


def test_every_number_of_the_page(written: tuple[Path, Any], recomputed: dict[str, Any]) -> None:
    out, summary = written
    cells = Cells((out / "index.html").read_text(encoding="utf-8")).found
    metrics = [cell for cell in cells if "low" in cell]
    shown = set()
    for cell in metrics:
        key = (cell["model"], cell["evaluation"], cell["variant"], cell["metric"])
        shown.add(key)
        assert recomputed["mine"][key] == near([float(cell[k]) for k in ("value", "low", "high")]), key
    assert shown == recomputed["mine"].keys()  # the page leaves no number out
    tests = [cell for cell in cells if "test" in cell]
    assert tests
    for cell in tests:
        key = tuple(cell[k] for k in ("evaluation", "variant", "metric", "first", "second"))
        mine = dict(zip(("difference", "low", "high", "p", "p_holm"), recomputed["tests"][key], strict=True))
        assert mine[cell["test"]] == near(float(cell["value"])), key
    costs = [cell for cell in cells if "cost" in cell]
    assert len(costs) == 3 * len(summary["models"])
    for cell in costs:
        assert recomputed["costs"][cell["model"], cell["cost"]] == near(float(cell["value"]))


def near(expected: Any) -> Any:
    return pytest.approx(
        tuple(expected) if isinstance(expected, (list, tuple)) else expected, rel=1e-6, abs=1e-9
    )
