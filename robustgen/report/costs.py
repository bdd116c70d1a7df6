"""What a model costs: a clean picture, in a chart against robustness, and its whole run."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from robustgen.metrics.verdicts import MAJORITY
from robustgen.report.columns import headline_eps
from robustgen.report.content import MetricLine, by_key, stochastic
from robustgen.report.figures import Figure, drawn_figure, line_of
from robustgen.report.formats import NORMS, eps_text
from robustgen.report.plots import Chart
from robustgen.threat import worst_name


class CostPoint(NamedTuple):
    """A model in the chart: what a clean picture takes, against the metric."""

    model: str
    colour: int
    milliseconds: float
    metric: MetricLine


def cost_points(content: dict[str, Any]) -> tuple[str, list[CostPoint]]:
    """What cost stands against, and every model's point: the worst case of the first threat, or clean
    accuracy where nobody was attacked."""
    numbers, threats = by_key(content), headline_eps(content)
    drawn = stochastic(content)
    evaluation, metric, what = "clean", "accuracy", "clean accuracy"
    if threats:
        norm, eps = threats[0]
        evaluation, metric = worst_name(norm, eps), "robust_accuracy"
        what = f"worst case, {NORMS[norm]} ≤ {eps_text(norm, eps)}"
    found = []
    for index, model in enumerate(content["models"]):
        number = numbers.get((model["name"], evaluation, MAJORITY if model["name"] in drawn else "", metric))
        cost = milliseconds(model)
        if number is not None and cost is not None:
            found.append(CostPoint(model["name"], index, cost, number))
    return what, found


def milliseconds(model: dict[str, Any]) -> float | None:
    """Wall time of all that the clean evaluation asks about a picture, log p(x) and the scores of a protocol
    included; None where none was measured."""
    clean = next((c for c in model["costs"] if c["evaluation"] == "clean" and c["n"]), None)
    return 1000 * clean["seconds"] / clean["n"] if clean and clean["seconds"] > 0 else None


def cost_chart(content: dict[str, Any]) -> Figure | None:
    """Robustness against what a prediction costs, cost on a logarithmic axis."""
    what, points = cost_points(content)
    if len(points) < 2:
        return None
    lines = [line_of(p.model, p.colour, [math.log10(p.milliseconds)], [p.metric], 100) for p in points]
    words = "; ".join(f"{p.model}: {p.milliseconds:.3g} ms, {100 * p.metric['value']:.1f} %" for p in points)
    logs = [math.log10(p.milliseconds) for p in points]
    middle, half = (max(logs) + min(logs)) / 2, max(0.5, 0.55 * (max(logs) - min(logs)))
    title = "Cost against robustness" if "worst" in what else "Cost against accuracy"
    chart = Chart(
        title, words, "milliseconds, all of a clean picture", f"{what}, %", lines,
        x_range=(middle - half, middle + half), y_range=(0, 100), x_powers=True,
    )  # fmt: skip
    return drawn_figure(title, chart)


def spent(model: dict[str, Any]) -> dict[str, Any]:
    """What a model's run cost: calls a picture over all evaluations, and wall time; and what was foretold."""
    costs = model["costs"]
    guess = model.get("estimate")
    return {
        "model": model["name"],
        "parameters": model["parameters"],
        "forwards": sum(c["forwards"] for c in costs),
        "backwards": sum(c["backwards"] for c in costs),
        "seconds": sum(c["seconds"] for c in costs),
        "estimate": guess
        and {
            "forwards": sum(c["forwards"] / c["n"] for c in guess["evaluations"]),
            "backwards": sum(c["backwards"] / c["n"] for c in guess["evaluations"]),
            "seconds": guess["seconds"],
        },
    }
