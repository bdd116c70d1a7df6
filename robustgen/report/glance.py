"""The first screen: for each question a strip on which every model is a dot; further right is better."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from robustgen.report.columns import Column
from robustgen.report.content import Summary
from robustgen.report.flags import Doubts
from robustgen.report.formats import scale_of
from robustgen.report.plots import COLOURS, element, marker, text
from robustgen.report.tables import Cell, MainTable
from robustgen.report.takeaways import takeaways

WIDTH, HEIGHT, LEFT, RIGHT, MIDDLE = 340, 44, 34, 30, 16
HARM = -100.0
"""Gains below are drawn at the left end: the harm that a gradient can do has no bound."""


@dataclass(frozen=True)
class Strip:
    """A question with its models as dots, and the takeaway in words."""

    opening: str
    sentence: str
    svg: str


def strips(table: MainTable, doubts: Doubts) -> list[Strip]:
    """A strip for each takeaway."""
    order = {model["name"]: index for index, (model, _) in enumerate(table.rows)}
    found = []
    for takeaway in takeaways(table, doubts):
        title = table.columns[takeaway.column].title
        opening = f"{takeaway.opening}, {title}" if title.startswith("σ") else takeaway.opening
        found.append(Strip(opening, takeaway.sentence, _strip(opening, table, takeaway.column, order)))
    return found


def _strip(opening: str, table: MainTable, place: int, order: dict[str, int]) -> str:
    column = table.columns[place]
    known = [(model["name"], cells[place]) for model, cells in table.rows]
    cells = [(name, cell) for name, cell in known if cell is not None]
    scale = float(scale_of(column.key.metric))
    left, right = _range(column, [end for _, cell in cells for end in _ends(cell, scale)])
    best_last = sorted(cells, key=lambda c: c[1].metric["value"], reverse=not column.higher_is_better)
    parts = [
        f'<line class="frame" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{MIDDLE}" y2="{MIDDLE}"/>',
        *(text(x, HEIGHT - 5, f"{end:g}".replace("-", "−")) for x, end in
          ((LEFT, left), (WIDTH - RIGHT, right))),
    ]  # fmt: skip
    if left < 0 < right:
        zero = _x(0, left, right)
        parts.append(f'<line class="reference" x1="{zero:.1f}" x2="{zero:.1f}" y1="4" y2="{MIDDLE + 12}"/>')
        parts.append(text(zero, HEIGHT - 5, "0"))
    beyond = [cell.text for _, cell in best_last if scale * cell.metric["value"] < min(left, right)]
    if beyond:
        # the worst, and so the first: side by side and with their numbers, since their places say nothing
        numbers = ", ".join(beyond) if len(beyond) < 4 else f"{beyond[0]} to {beyond[-1]}"
        parts.append(text(LEFT + 20, HEIGHT - 5, f"◂ {numbers}", "start"))
    for rank, (name, cell) in enumerate(best_last):
        aside, lift = 11.0 * rank if rank < len(beyond) else 0.0, 2.0 * (rank - len(cells) / 2)
        parts.append(_dot(name, cell, order[name], scale, (left, right), aside, lift))
    words = "; ".join(f"{name} {cell.text} ({cell.interval})" for name, cell in reversed(best_last))
    return element(opening, words, WIDTH, HEIGHT, "".join(parts), "strip")


def _dot(
    name: str, cell: Cell, index: int, scale: float, ends: tuple[float, float], aside: float, lift: float
) -> str:
    x, low, high = (_x(min(max(value, min(ends)), max(ends)), *ends) for value in _ends(cell, scale))
    x += aside
    if aside:
        low, high = x, max(high, x)
    y, colour = MIDDLE + lift / 2, f"var(--series-{index % COLOURS})"
    return (
        f"<g><title>{escape(f'{name}: {cell.text} ({cell.interval})')}</title>"
        f'<line class="whisker" style="stroke:{colour}" x1="{low:.1f}" x2="{high:.1f}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f"{marker(index, x, y, 5, 'dot ring' if cell.mark == 'best' else 'dot')}</g>"
    )


def _ends(cell: Cell, scale: float) -> tuple[float, float, float]:
    """A value and the ends of its interval, scaled."""
    metric = cell.metric
    return scale * metric["value"], scale * metric["ci_low"], scale * metric["ci_high"]


def _x(value: float, left: float, right: float) -> float:
    return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)


def _range(column: Column, values: list[float]) -> tuple[float, float]:
    """The values at the left and the right end of a strip; better is to the right."""
    metric = column.key.metric
    if metric in ("guidance_gain", "psnr_gain"):
        reach = max(1.0, *(abs(v) for v in values if v > HARM)) if any(v > HARM for v in values) else 1.0
        step = 10 if metric == "guidance_gain" else 1
        top = step * (int(max(0.0, *values, reach / 5) / step) + 1)
        return (max(HARM, step * (int(min(0.0, *values) / step) - 1)), top)
    if not column.higher_is_better:
        return (float(5 * (int(max(values) / 5) + 1)), 0.0)
    floor = min(values)
    return (90.0 if floor >= 90 else 50.0 if floor >= 50 else 0.0, 100.0)


def legend(content: Summary) -> list[tuple[str, int]]:
    """Every model with its colour."""
    return [(model["name"], index) for index, model in enumerate(content["models"])]
