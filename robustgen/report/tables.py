"""The tables of the page: cells with their intervals, the best of each column, and what is tied with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from robustgen.metrics.comparisons import Key
from robustgen.report.columns import Column, columns
from robustgen.report.content import MetricLine, Numbers, by_key, names_of
from robustgen.report.flags import PROBABILITIES
from robustgen.report.formats import SHARES, format_interval, format_value, p_text

ALPHA = 0.05


@dataclass(frozen=True)
class Cell:
    """A number of a table; ``mark`` is best, tied (with the best), untested (against it) or empty."""

    metric: MetricLine
    text: str
    interval: str
    mark: str = ""


class Row(NamedTuple):
    """A model of summary.json with its cells, a column each; None where it has no number."""

    model: dict[str, Any]
    cells: list[Cell | None]


@dataclass(frozen=True)
class MainTable:
    """Models against evaluations; ``groups`` are (title, how many columns) of the upper header."""

    columns: list[Column]
    groups: list[tuple[str, int]]
    rows: list[Row]

    @property
    def kinds(self) -> list[tuple[str, list[Row]]]:
        """The rows of generative models, which say something of p(x), and those of the others."""
        found: dict[str, list[Row]] = {"generative": [], "discriminative": []}
        for row in self.rows:
            found["generative" if "log_prob" in row.model["supports"] else "discriminative"].append(row)
        return [(kind, rows) for kind, rows in found.items() if rows]

    @property
    def untested(self) -> bool:
        """Whether any cell could not be tested against the best."""
        return any(cell is not None and cell.mark == "untested" for _, cells in self.rows for cell in cells)


def main_table(content: dict[str, Any]) -> MainTable:
    """The one table of models against evaluations."""
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


def cell(metric: MetricLine | None, mark: str = "") -> Cell | None:
    """A metric as a cell; None where there is none."""
    return Cell(metric, format_value(metric), format_interval(metric), mark) if metric else None


def _marks(content: dict[str, Any], column: Column) -> dict[str, str]:
    """Who is best in a column, who is not different from the best by the corrected paired test, and of
    whom there is no test, for lack of common samples."""
    values = {m["model"]: m["value"] for m in content["metrics"] if _key(m) == column.key}
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
        if _key(test) == column.key
    }
    marks = dict.fromkeys(best, "best")
    for model in values.keys() - best:
        found = [p_of.get(frozenset([model, other])) for other in best]
        if any(p is not None and p >= ALPHA for p in found):
            marks[model] = "tied"
        elif None in found:
            marks[model] = "untested"
    return marks


def _not_ranked(content: dict[str, Any], evaluation: str) -> set[str]:
    """Models whose gain is not that of their class gradient, or that have none."""
    flags = ((PROBABILITIES, ""), ("zero_gradients", evaluation))
    return {flag["model"] for flag in content["flags"] if (flag["flag"], flag["evaluation"]) in flags}


def _key(entry: dict[str, Any]) -> Key:
    return Key(entry["evaluation"], entry["variant"], entry["metric"])


@dataclass(frozen=True)
class DetailTable:
    """Every number of some metrics: a row a (evaluation, variant, metric), a column a model."""

    title: str
    models: list[str]
    rows: list[tuple[Key, str, list[Cell | None]]]


def detail_table(content: dict[str, Any], title: str, metrics: tuple[str, ...]) -> DetailTable | None:
    """All numbers of ``metrics``, or None where there are none."""
    numbers, models = by_key(content), names_of(content)
    keys = list(dict.fromkeys(_key(m) for m in content["metrics"] if m["metric"] in metrics))
    rows = [
        (key, _unit(numbers, key), [cell(numbers.get((model, *key))) for model in models]) for key in keys
    ]
    return DetailTable(title, models, rows) if rows else None


def _unit(numbers: Numbers, key: Key) -> str:
    metric = next(m for (_, *rest), m in numbers.items() if Key(*rest) == key)
    return "%" if key.metric in SHARES else metric["unit"]


def test_rows(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The paired tests of the main table's columns, with their numbers as text."""
    titles = {column.key: f"{column.group}: {column.title}" for column in columns(content)}
    found = []
    for test in content["comparisons"]:
        if _key(test) in titles:
            found.append({
                **test,
                "title": titles[_key(test)],
                "shown": format_value(test, test["difference"]),
                "interval": format_interval(test),
                "p_text": p_text(test["p"]),
                "holm_text": p_text(test["p_holm"]),
                "differs": test["p_holm"] < ALPHA,
                "scale": 100 if test["metric"] in SHARES else 1,
            })  # fmt: skip
    return found
