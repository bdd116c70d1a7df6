"""The tables of the page: the main one with the best of each column marked, all metrics, all paired tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from robustgen.metrics.comparisons import Key
from robustgen.report.columns import Column, columns
from robustgen.report.content import (
    ComparisonEntry,
    MetricEntry,
    ModelEntry,
    Summary,
    by_key,
    key_of,
    names_of,
)
from robustgen.report.flags import PROBABILITIES
from robustgen.report.formats import format_interval, format_of, format_value, number_text, p_text, scale_of

ALPHA = 0.05
Mark = Literal["best", "tied", "untested", ""]


@dataclass(frozen=True)
class Cell:
    """A number of a table; ``mark`` compares it with the best of its column."""

    metric: MetricEntry
    text: str
    interval: str
    mark: Mark = ""


class Row(NamedTuple):
    """A model with its cell in each column, None where it has no number."""

    model: ModelEntry
    cells: list[Cell | None]


@dataclass(frozen=True)
class MainTable:
    """Models against evaluations; ``groups``: (title, number of columns) of the upper header."""

    columns: list[Column]
    groups: list[tuple[str, int]]
    rows: list[Row]

    @property
    def kinds(self) -> list[tuple[str, list[Row]]]:
        """The rows of the generative models, which have a log p(x), and those of the others."""
        found: dict[str, list[Row]] = {"generative": [], "discriminative": []}
        for row in self.rows:
            kind = "generative" if "log_prob" in row.model["supports"] else "discriminative"
            found[kind].append(row)
        return [(kind, rows) for kind, rows in found.items() if rows]

    @property
    def untested(self) -> bool:
        """Whether any cell could not be tested against the best."""
        return any(cell is not None and cell.mark == "untested" for _, cells in self.rows for cell in cells)


def main_table(content: Summary) -> MainTable:
    """The main table of a summary."""
    shown = columns(content)
    groups: list[tuple[str, int]] = []
    for column in shown:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    marks = {column.key: _marks(content, column) for column in shown}
    numbers = by_key(content)
    rows = []
    for model in content["models"]:
        name = model["name"]
        cells = [cell(numbers.get((name, *column.key)), marks[column.key].get(name, "")) for column in shown]
        rows.append(Row(model, cells))
    return MainTable(shown, groups, rows)


def cell(metric: MetricEntry | None, mark: Mark = "") -> Cell | None:
    """A metric as a cell; None where there is none."""
    return Cell(metric, format_value(metric), format_interval(metric), mark) if metric else None


def _marks(content: Summary, column: Column) -> dict[str, Mark]:
    """The models of a column that are best, those that no corrected paired test separates from the best, and
    those without a test against it, for lack of common samples."""
    values = {m["model"]: m["value"] for m in content["metrics"] if key_of(m) == column.key}
    if column.key.metric == "guidance_gain":
        out = _not_ranked(content, column.key.evaluation)
        values = {model: value for model, value in values.items() if model not in out}
    if len(set(values.values())) < 2:
        return {}
    top = (max if column.higher_is_better else min)(values.values())
    best = {model for model, value in values.items() if value == top}
    p_of = {
        frozenset([test["model_a"], test["model_b"]]): test["p_holm"]
        for test in content["comparisons"]
        if key_of(test) == column.key
    }
    marks: dict[str, Mark] = dict.fromkeys(best, "best")
    for model in values.keys() - best:
        found = [p_of.get(frozenset([model, other])) for other in best]
        if any(p is not None and p >= ALPHA for p in found):
            marks[model] = "tied"
        elif None in found:
            marks[model] = "untested"
    return marks


def _not_ranked(content: Summary, evaluation: str) -> set[str]:
    """Models whose gain is not that of their class gradient, or that have none."""
    flags = ((PROBABILITIES, ""), ("zero_gradients", evaluation))
    return {flag["model"] for flag in content["flags"] if (flag["flag"], flag["evaluation"]) in flags}


@dataclass(frozen=True)
class DetailTable:
    """Every number of some metrics: a row of (key, unit, cells) for each key, a column for each model."""

    title: str
    models: list[str]
    rows: list[tuple[Key, str, list[Cell | None]]]


def detail_table(content: Summary, title: str, metrics: tuple[str, ...]) -> DetailTable | None:
    """All numbers of ``metrics``, or None where there are none."""
    numbers, models = by_key(content), names_of(content)
    units = {
        key_of(m): "%" if format_of(m["metric"]).percent else m["unit"]
        for m in content["metrics"]
        if m["metric"] in metrics
    }
    rows = [
        (key, unit, [cell(numbers.get((model, *key))) for model in models]) for key, unit in units.items()
    ]
    return DetailTable(title, models, rows) if rows else None


class PairedTest(ComparisonEntry):
    """A comparison with its numbers as text; ``scale`` turns its difference into the number shown."""

    title: str
    shown: str
    interval: str
    p_text: str
    holm_text: str
    differs: bool
    scale: int


def paired_tests(content: Summary) -> list[PairedTest]:
    """The paired tests of the main table's columns."""
    titles = {column.key: f"{column.group}: {column.title}" for column in columns(content)}
    return [
        {
            **test,
            "title": titles[key_of(test)],
            "shown": number_text(test["metric"], test["difference"]),
            "interval": format_interval(test),
            "p_text": p_text(test["p"]),
            "holm_text": p_text(test["p_holm"]),
            "differs": test["p_holm"] < ALPHA,
            "scale": scale_of(test["metric"]),
        }
        for test in content["comparisons"]
        if key_of(test) in titles
    ]
