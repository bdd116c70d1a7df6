"""Corrupted pictures on the page: a heat map of types and models, and a chart a type against severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from robustgen.report.content import Numbers, by_key, names_of, of_kind
from robustgen.report.figures import Figure, drawn_figure, line_of
from robustgen.report.plots import Chart


@dataclass(frozen=True)
class Heat:
    """Accuracy by type of corruption (rows) and model (columns), None where it was not measured."""

    models: list[str]
    rows: list[tuple[str, list[float | None]]]


def heat_map(content: dict[str, Any]) -> Heat | None:
    """The plain mean over severities of each type and model; None without corruptions."""
    numbers, kinds = by_key(content), _kinds(content)
    rows = []
    for kind, severities in kinds.items():
        cells: list[float | None] = []
        for model in names_of(content):
            found = [numbers.get((model, name, "", "corruption_accuracy")) for name in severities.values()]
            known = [metric["value"] for metric in found if metric is not None]
            cells.append(float(np.mean(known)) if len(known) == len(found) else None)
        rows.append((kind.replace("_", " "), cells))
    return Heat(names_of(content), rows) if rows else None


def _kinds(content: dict[str, Any]) -> dict[str, dict[int, str]]:
    """Type to severity to the evaluation's name."""
    kinds: dict[str, dict[int, str]] = {}
    for d in of_kind(content, "corruption"):
        kinds.setdefault(d["type"], {})[d["severity"]] = d["name"]
    return kinds


def corruption_charts(content: dict[str, Any]) -> list[Figure]:
    """A small chart a kind of corruption: accuracy against severity, 0 being the clean pictures."""
    details = {d["name"]: d for m in content["models"] for d in m["evaluations"] if d["kind"] == "corruption"}
    kinds, numbers = _kinds(content), by_key(content)
    made = {d["type"]: d.get("pictures", "").partition(",")[0] for d in details.values()}
    charts = (_corruption(content, numbers, kind, sizes, made[kind]) for kind, sizes in kinds.items())
    return [chart for chart in charts if chart is not None]


def _corruption(
    content: dict[str, Any], numbers: Numbers, kind: str, severities: dict[int, str], made: str
) -> Figure | None:
    """``made``: whether the pictures are the published ones or were regenerated, where there is a choice.

    None where no model has a number.
    """
    lines, words = [], []
    for index, model in enumerate(names_of(content)):
        points = [(0, numbers.get((model, "clean", "", "accuracy")))]
        points += [
            (s, numbers.get((model, severities[s], "", "corruption_accuracy"))) for s in sorted(severities)
        ]
        known = [(severity, metric) for severity, metric in points if metric is not None]
        if known:
            lines.append(line_of(model, index, [s for s, _ in known], [m for _, m in known], 100))
            said = ", ".join(f"{100 * m['value']:.1f} at {s}" for s, m in known)
            words.append(f"{model}: {said}")
    if not lines:
        return None
    title = kind.replace("_", " ")
    low = min((y for line in lines for y in line.low), default=0)
    chart = Chart(
        title, "; ".join(words), "severity", "accuracy, %", lines,
        y_range=(min(50, 10 * (low // 10)), 100), width=300, height=200,
    )  # fmt: skip
    return drawn_figure(title, chart, f"Pictures: {made}." if made else "")
