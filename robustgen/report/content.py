"""The types of summary.json, and the look-ups that several parts of a page share."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from robustgen.metrics.comparisons import Key
from robustgen.metrics.verdicts import MAJORITY
from robustgen.types import Kind, Norm, Severity


class MetricEntry(TypedDict):
    """A ``types.Metric``."""

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


class FlagEntry(TypedDict):
    """A ``types.Flag``."""

    model: str
    evaluation: str
    flag: str
    severity: Severity
    message: str


class ComparisonEntry(TypedDict):
    """A ``comparisons.Comparison``."""

    evaluation: str
    variant: str
    metric: str
    model_a: str
    model_b: str
    difference: float
    ci_low: float
    ci_high: float
    n: int
    test: Literal["mcnemar", "bootstrap"]
    only_a: int | None
    only_b: int | None
    p: float
    p_holm: float


class EvaluationEntry(TypedDict):
    """An evaluation as run.json describes it; which of the optional keys it has depends on its kind."""

    name: str
    kind: Kind
    data: str
    size: int
    attack: NotRequired[str]
    norm: NotRequired[Norm]
    eps: NotRequired[float]
    cascade: NotRequired[list[str] | None]
    surrogates: NotRequired[list[str]]
    score: NotRequired[str]
    rejection: NotRequired[float]
    type: NotRequired[str]
    severity: NotRequired[int]
    pictures: NotRequired[str]
    confounded: NotRequired[str]
    sigmas: NotRequired[list[float]]


class CostEntry(TypedDict):
    """What an evaluation took: calls of the model a picture, forwards and backwards, and seconds in all."""

    evaluation: str
    n: int
    forwards: float
    backwards: float
    seconds: float


class ModelEntry(TypedDict):
    """A model: run.json's ``model``, how it was run, its evaluations and what they took."""

    name: str
    fingerprint: str
    family: str
    summary: str
    data: str
    calls: NotRequired[int]
    num_classes: int
    supports: list[str]
    stochastic: bool
    parameters: int
    path: str
    kernels: dict[str, Any]
    environment: dict[str, str]
    evaluations: list[EvaluationEntry]
    costs: list[CostEntry]
    estimate: dict[str, Any] | None


class DataEntry(TypedDict):
    """run.json's ``data``."""

    name: str
    source: NotRequired[str]
    fingerprint: str
    provenance: str
    class_names: list[str]
    size: int
    shape: list[int]


class Summary(TypedDict):
    """What summary.json holds; ``n``: samples asked for, None for all; ``protocol``: the protocol's YAML."""

    robustgen: str
    created: str
    command: str
    n: int | None
    data: DataEntry
    protocol: dict[str, Any]
    models: list[ModelEntry]
    metrics: list[MetricEntry]
    flags: list[FlagEntry]
    comparisons: list[ComparisonEntry]


Numbers = dict[tuple[str, str, str, str], MetricEntry]
"""Metrics by (model, evaluation, variant, metric)."""


def by_key(content: Summary) -> Numbers:
    """The metrics of a summary by (model, evaluation, variant, metric)."""
    return {(m["model"], *key_of(m)): m for m in content["metrics"]}


def key_of(entry: MetricEntry | ComparisonEntry) -> Key:
    """What an entry is a number of, whichever model it is about."""
    return Key(entry["evaluation"], entry["variant"], entry["metric"])


def names_of(content: Summary) -> list[str]:
    """The models in the order of the report; a model's place is its colour."""
    return [model["name"] for model in content["models"]]


def stochastic(content: Summary) -> set[str]:
    """The models whose answers are random."""
    return {model["name"] for model in content["models"] if model.get("stochastic")}


def worst_case_variant(content: Summary, model: str) -> str:
    """The variant of a model's accuracy that compares with its worst case, which has no mean over draws."""
    return MAJORITY if model in stochastic(content) else ""


def of_kind(content: Summary, *kinds: Kind) -> list[EvaluationEntry]:
    """The evaluations of these kinds that any model has, each once, in the order of their first model."""
    found: dict[str, EvaluationEntry] = {}
    for model in content["models"]:
        for detail in model["evaluations"]:
            if detail["kind"] in kinds:
                found.setdefault(detail["name"], detail)
    return list(found.values())


def asked(content: Summary) -> int:
    """How many test pictures every model was asked about, at most."""
    size = content["data"]["size"]
    return min(content["n"] or size, size)
