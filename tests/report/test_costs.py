"""What models cost, and what of it the chart shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustgen.report.costs import cost_chart, cost_points, milliseconds, run_cost


def test_every_model_is_a_point_at_its_worst_case(written: tuple[Path, dict[str, Any]]) -> None:
    content = written[1]
    what, points = cost_points(content)
    assert what.startswith("worst case, ")
    assert [(p.model, p.colour) for p in points] == [(m["name"], i) for i, m in enumerate(content["models"])]
    assert [p.milliseconds for p in points] == [milliseconds(m) for m in content["models"]]
    assert {p.metric["metric"] for p in points} == {"robust_accuracy"}


def test_one_model_alone_has_no_chart(written: tuple[Path, dict[str, Any]]) -> None:
    content = written[1]
    assert cost_chart(content) is not None
    assert cost_chart(content | {"models": content["models"][:1]}) is None


def test_a_clean_evaluation_without_a_time_costs_nothing_known() -> None:
    assert milliseconds({"costs": [{"evaluation": "clean", "n": 50, "seconds": 0.0}]}) is None
    assert milliseconds({"costs": [{"evaluation": "pgd", "n": 50, "seconds": 1.0}]}) is None
    assert milliseconds({"costs": [{"evaluation": "clean", "n": 50, "seconds": 1.0}]}) == pytest.approx(20)


def test_what_a_run_took_stands_beside_what_was_foretold() -> None:
    took = [{"forwards": 2.0, "backwards": 1.0, "seconds": 3.0}] * 2
    foretold = {"seconds": 9.0, "evaluations": [{"forwards": 10.0, "backwards": 5.0, "n": 5}]}
    model = {"name": "m", "parameters": 7, "costs": took}
    assert run_cost(model)["estimate"] is None
    found = run_cost(model | {"estimate": foretold})
    assert (found["forwards"], found["backwards"], found["seconds"]) == (4, 2, 6)
    assert found["estimate"] == {"forwards": 2.0, "backwards": 1.0, "seconds": 9.0}
