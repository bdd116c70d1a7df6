"""Corruptions on the page: a heat map of types and models, and accuracy against severity for each type."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robustgen.report.content import Numbers, Summary, by_key, names_of, of_kind
from robustgen.report.figures import Figure, drawn_figure, line_of
from robustgen.report.plots import Chart


@dataclass(frozen=True)
class Heat:
    """Accuracy by type of corruption (rows) and model (columns), None where it was not measured."""

    models: list[str]
    rows: list[tuple[str, list[float | None]]]


def heat_map(content: Summary) -> Heat | None:
    """The mean over severities for each type and model; None without corruptions."""
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


def _kinds(content: Summary) -> dict[str, dict[int, str]]:
    """The evaluations' names by type and severity."""
    kinds: dict[str, dict[int, str]] = {}
    for d in of_kind(content, "corruption"):
        kinds.setdefault(d["type"], {})[d["severity"]] = d["name"]
    return kinds


def corruption_charts(content: Summary) -> list[Figure]:
    """For each type a small chart of accuracy against severity; severity 0 is the clean pictures."""
    numbers = by_key(content)
    origin = {d["type"]: d.get("pictures", "").partition(",")[0] for d in of_kind(content, "corruption")}
    charts = (_corruption(content, numbers, kind, s, origin[kind]) for kind, s in _kinds(content).items())
    return [chart for chart in charts if chart is not None]


def _corruption(
    content: Summary, numbers: Numbers, kind: str, severities: dict[int, str], origin: str
) -> Figure | None:
    """None where no model has a number.

    ``origin``: whether the pictures are the published ones or were regenerated, "" if there is only one way.
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
            values = ", ".join(f"{100 * m['value']:.1f} at {s}" for s, m in known)
            words.append(f"{model}: {values}")
    if not lines:
        return None
    title = kind.replace("_", " ")
    low = min((y for line in lines for y in line.low), default=0)
    chart = Chart(
        title, "; ".join(words), "severity", "accuracy, %", lines,
        y_range=(min(50, 10 * (low // 10)), 100), width=300, height=200,
    )  # fmt: skip
    return drawn_figure(title, chart, f"Pictures: {origin}." if origin else "")
