"""What summary.json holds, looked up: every part of a page reads its content through these."""

from __future__ import annotations

from typing import Any, TypedDict

from robustgen.types import Severity


class MetricLine(TypedDict):
    """A number of summary.json: a ``types.Metric``."""

    model: str
    evaluation: str
    variant: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    unit: str
    higher_is_better: bool | None


class FlagLine(TypedDict):
    """A doubt of summary.json: a ``types.Flag``."""

    model: str
    evaluation: str
    flag: str
    severity: Severity
    message: str


Numbers = dict[tuple[str, str, str, str], MetricLine]


def by_key(content: dict[str, Any]) -> Numbers:
    """The metrics of a summary by (model, evaluation, variant, metric)."""
    return {(m["model"], m["evaluation"], m["variant"], m["metric"]): m for m in content["metrics"]}


def names_of(content: dict[str, Any]) -> list[str]:
    """The models in the order of the report; a model's place is its colour."""
    return [model["name"] for model in content["models"]]


def stochastic(content: dict[str, Any]) -> set[str]:
    """The models whose verdicts were drawn."""
    return {model["name"] for model in content["models"] if model.get("stochastic")}


def of_kind(content: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The evaluations of a kind that any model has, in the order of the first that has them."""
    found: dict[str, dict[str, Any]] = {}
    for model in content["models"]:
        for detail in model["evaluations"]:
            if detail["kind"] == kind:
                found.setdefault(detail["name"], detail)
    return list(found.values())
