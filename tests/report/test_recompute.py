"""Every number of the page follows from stored rows by the snippets of docs/recompute.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import Page, plain

SNIPPETS = Path(__file__).parents[2] / "docs" / "recompute.md"


@pytest.fixture(scope="module")
def recomputed(report: Path) -> dict[str, Any]:
    """What the snippets leave behind when they are run in the report's folder."""
    source = "\n\n".join(
        re.findall(r"^```python\n(.*?)^```", SNIPPETS.read_text(encoding="utf-8"), re.M | re.S)
    )
    space: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(report)
        exec(compile(source, str(SNIPPETS), "exec"), space)
    return space


def test_every_metric_with_its_interval(summary: dict[str, Any], recomputed: dict[str, Any]) -> None:
    theirs = {
        (m["model"], m["evaluation"], m["variant"], m["metric"]): (m["value"], m["ci_low"], m["ci_high"])
        for m in summary["metrics"]
    }
    assert recomputed["mine"].keys() == theirs.keys()
    wrong = {k: (v, recomputed["mine"][k]) for k, v in theirs.items() if recomputed["mine"][k] != near(v)}
    assert not wrong


def test_every_paired_test(summary: dict[str, Any], recomputed: dict[str, Any]) -> None:
    assert summary["comparisons"]
    for test in summary["comparisons"]:
        key = (test["evaluation"], test["variant"], test["metric"], test["model_a"], test["model_b"])
        expected = [test[k] for k in ("difference", "ci_low", "ci_high", "p", "p_holm")]
        assert recomputed["tests"][key] == near(expected), key


def test_every_number_of_the_page(page: Page, summary: dict[str, Any], recomputed: dict[str, Any]) -> None:
    metrics = [cell for cell in page.cells if "low" in cell]
    shown = set()
    for cell in metrics:
        key = (cell["model"], cell["evaluation"], cell["variant"], cell["metric"])
        shown.add(key)
        assert recomputed["mine"][key] == near([float(cell[k]) for k in ("value", "low", "high")]), key
    assert shown == recomputed["mine"].keys()  # the page leaves no number out
    tests = [cell for cell in page.cells if "test" in cell]
    assert tests
    for cell in tests:
        key = tuple(cell[k] for k in ("evaluation", "variant", "metric", "first", "second"))
        mine = dict(zip(("difference", "low", "high", "p", "p_holm"), recomputed["tests"][key], strict=True))
        assert mine[cell["test"]] == near(float(cell["value"])), key
    costs = [cell for cell in page.cells if "cost" in cell]
    assert len(costs) == 3 * len(summary["models"])
    for cell in costs:
        assert recomputed["costs"][cell["model"], cell["cost"]] == near(float(cell["value"]))
        assert plain(cell["text"]) == [(pytest.approx(float(cell["value"]), abs=0.5), 0)]


def test_the_heat_map_is_the_mean_over_severities(page: Page, recomputed: dict[str, Any]) -> None:
    by_type: dict[tuple[str, str], list[float]] = {}
    for (model, evaluation, variant, metric), numbers in recomputed["mine"].items():
        kind, _, severity = evaluation.rpartition("-")
        if (metric, variant) == ("corruption_accuracy", "") and severity.isdigit():
            by_type.setdefault((model, kind.replace("_", " ")), []).append(numbers[0])
    assert page.heat
    assert {key: near(float(np.mean(values))) for key, values in by_type.items()} == page.heat


def test_the_reliability_diagrams(page: Page, recomputed: dict[str, Any]) -> None:
    found = {k.removeprefix("Reliability of "): v for k, v in page.charts.items() if "Reliability" in k}
    assert found.keys() == recomputed["bins"].keys()
    for model, chart in found.items():
        said = [value for value, _ in plain(chart.words)]
        assert said == pytest.approx(np.ravel([b[:2] for b in recomputed["bins"][model]]), abs=0.00501)
        sizes = [2 + 9 * share**0.5 for _, _, share in recomputed["bins"][model]]
        assert chart.radii == pytest.approx(sizes, abs=0.0501)


def test_the_roc_curves(page: Page, summary: dict[str, Any], recomputed: dict[str, Any]) -> None:
    areas = {(m["model"], m["evaluation"]): m for m in summary["metrics"] if m["metric"] == "auroc"
             and m["variant"] == "energy"}  # fmt: skip
    assert recomputed["roc"].keys() == areas.keys()
    for (model, evaluation), points in recomputed["roc"].items():
        chart = page.charts[f"{summary['data']['name']} against {evaluation.removeprefix('ood-')}"]
        # the plot's area: from 54 to 428 rightwards, from 240 to 10 upwards
        there = np.stack([54 + 3.74 * points[:, 0], 240 - 2.3 * points[:, 1]], 1)
        drawn = np.asarray(chart.lines[model])
        assert np.abs(drawn[:, None] - there).max(2).min(1).max() < 0.0501
        assert f"{model}: AUROC {100 * areas[model, evaluation]['value']:.1f}" in chart.words
        # a straight line that leaves out a corner would pass the check above
        area = np.trapezoid(240 - drawn[:, 1], drawn[:, 0]) / (374 * 230)
        assert area == pytest.approx(areas[model, evaluation]["value"], abs=0.005)


def near(expected: Any) -> Any:
    # a temperature is found to 1e-8, and with it what is read after it; a lower end may be near 0
    return pytest.approx(
        tuple(expected) if isinstance(expected, (list, tuple)) else expected, rel=1e-6, abs=1e-8
    )
