"""What a model costs: the time of a clean picture against robustness, and the calls of its whole run."""

from __future__ import annotations

import math
from typing import NamedTuple, TypedDict

from robustgen.report.columns import headline_eps
from robustgen.report.content import MetricEntry, ModelEntry, Summary, by_key, worst_case_variant
from robustgen.report.figures import Figure, drawn_figure, line_of
from robustgen.report.formats import threat_text
from robustgen.report.plots import Chart
from robustgen.threat import worst_name


class CostPoint(NamedTuple):
    """A model in the chart: the time of a clean picture, and its accuracy."""

    model: str
    colour: int
    milliseconds: float
    metric: MetricEntry


def cost_points(content: Summary) -> tuple[str, list[CostPoint]]:
    """The accuracy that cost is drawn against, in words, and every model's point: the worst case of the first
    threat model, or clean accuracy where there was no attack."""
    numbers, threats = by_key(content), headline_eps(content)
    evaluation, metric, what = "clean", "accuracy", "clean accuracy"
    if threats:
        norm, eps = threats[0]
        evaluation, metric = worst_name(norm, eps), "robust_accuracy"
        what = f"worst case, {threat_text(norm, eps)}"
    found = []
    for index, model in enumerate(content["models"]):
        variant = worst_case_variant(content, model["name"])
        number = numbers.get((model["name"], evaluation, variant, metric))
        cost = milliseconds(model)
        if number is not None and cost is not None:
            found.append(CostPoint(model["name"], index, cost, number))
    return what, found


def milliseconds(model: ModelEntry) -> float | None:
    """Wall time of the clean evaluation a picture, log p(x) and all scores of the protocol included; None
    where it was not measured."""
    clean = next((c for c in model["costs"] if c["evaluation"] == "clean" and c["n"]), None)
    return 1000 * clean["seconds"] / clean["n"] if clean and clean["seconds"] > 0 else None


def cost_chart(content: Summary) -> Figure | None:
    """Accuracy against the time of a clean picture, on a logarithmic axis."""
    what, points = cost_points(content)
    if len(points) < 2:
        return None
    lines = [line_of(p.model, p.colour, [math.log10(p.milliseconds)], [p.metric], 100) for p in points]
    words = "; ".join(f"{p.model}: {p.milliseconds:.3g} ms, {100 * p.metric['value']:.1f} %" for p in points)
    logs = [math.log10(p.milliseconds) for p in points]
    middle, half = (max(logs) + min(logs)) / 2, max(0.5, 0.55 * (max(logs) - min(logs)))
    title = "Cost against robustness" if "worst" in what else "Cost against accuracy"
    chart = Chart(
        title, words, "milliseconds per clean picture", f"{what}, %", lines,
        x_range=(middle - half, middle + half), y_range=(0, 100), x_powers=True,
    )  # fmt: skip
    return drawn_figure(title, chart)


class Calls(TypedDict):
    """Calls of the model a picture, summed over all evaluations, and the wall time of a run in seconds."""

    forwards: float
    backwards: float
    seconds: float


class RunCost(Calls):
    """What a model's run cost, beside the estimate that was made before it, if any."""

    model: str
    parameters: int
    estimate: Calls | None


def run_cost(model: ModelEntry) -> RunCost:
    """What a model's run cost, and what was estimated."""
    costs, estimate = model["costs"], model.get("estimate")
    return {
        "model": model["name"],
        "parameters": model["parameters"],
        "forwards": sum(c["forwards"] for c in costs),
        "backwards": sum(c["backwards"] for c in costs),
        "seconds": sum(c["seconds"] for c in costs),
        "estimate": None
        if estimate is None
        else {
            "forwards": sum(c["forwards"] / c["n"] for c in estimate["evaluations"]),
            "backwards": sum(c["backwards"] / c["n"] for c in estimate["evaluations"]),
            "seconds": estimate["seconds"],
        },
    }
