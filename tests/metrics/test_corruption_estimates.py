"""Means over corruptions, from rows made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from robustgen.corruptions import CORRUPTIONS
from robustgen.metrics.corruption_estimates import NOISE_CORRUPTIONS, corruption_estimates, relative_errors
from robustgen.metrics.measure import measure
from robustgen.metrics.rows import Evaluation, Rows, Run

N = 40
TYPES = list(CORRUPTIONS)[:15]


def rows(right: np.ndarray) -> Rows:
    n = len(right)
    some, none = np.zeros(n), np.full(n, None)
    return Rows(
        np.arange(n), np.zeros(n, int), np.stack([right, 1 - right], 1).astype(float), np.ones(n, int),
        right.astype(int), some * np.nan, none, none, np.full(n, "sample"), some, some,
    )  # fmt: skip


def run(
    name: str, seed: int, prefix: str = "", types: list[str] = TYPES
) -> tuple[Run, dict[tuple[str, int], np.ndarray]]:
    rng = np.random.default_rng(seed)
    right = {(t, s): rng.random(N) < 0.9 - 0.1 * s + 0.02 * i for i, t in enumerate(types) for s in (1, 2, 3)}
    evaluations = {
        f"{t}-{s}": Evaluation(
            {"name": f"{t}-{s}", "kind": "corruption", "type": prefix + t, "severity": s}, rows(who), N
        )
        for (t, s), who in right.items()
    }
    return Run(name, {"model": {"density": None}}, evaluations), right


def found(estimates) -> dict[tuple[str, str], float]:
    return {(e.metric.evaluation, e.metric.variant): e.metric for e in estimates}


def test_means_over_cells_types_and_the_worst_of_them() -> None:
    made, right = run("m", 0)
    numbers = found(e for e in measure(made) if e.metric.evaluation == "corruptions")
    accuracy = {cell: who.mean() for cell, who in right.items()}
    noise = [a for (t, _), a in accuracy.items() if t in NOISE_CORRUPTIONS]
    assert numbers["corruptions", "all"].value == pytest.approx(np.mean(list(accuracy.values())))
    assert numbers["corruptions", "noise"].value == pytest.approx(np.mean(noise))
    by_type = {t: np.mean([accuracy[t, s] for s in (1, 2, 3)]) for t in TYPES}
    for name, value in by_type.items():
        assert numbers["corruptions", name].value == pytest.approx(value)
    worst = numbers["corruptions", "worst"]
    assert worst.value == pytest.approx(min(by_type.values()))
    assert worst.ci_low <= worst.value + 1e-12  # a minimum over resamples is lower still
    assert worst.ci_low < worst.ci_high


def test_fewer_types_than_the_benchmark_has_have_no_worst() -> None:
    made, _ = run("m", 0, types=TYPES[:6])
    variants = {e.metric.variant for e in measure(made) if e.metric.evaluation == "corruptions"}
    assert variants == {"all", "noise", "other"}


def test_imagenet_c_has_means_of_its_own() -> None:
    made, _ = run("m", 0, prefix="imagenet-c:")
    cells = {f"{type_}-{severity}" for type_ in TYPES for severity in (1, 2, 3)}
    assert {e.metric.evaluation for e in corruption_estimates(made)} == {"corruptions-imagenet-c", *cells}


def test_errors_relative_to_a_baseline() -> None:
    (a, right_a), (b, right_b) = run("a", 0), run("b", 1)
    (found_one,) = relative_errors([a, b], "a")
    ratios = [
        sum((~right_b[t, s]).sum() for s in (1, 2, 3)) / sum((~right_a[t, s]).sum() for s in (1, 2, 3))
        for t in TYPES
    ]
    metric = found_one.metric
    assert (metric.model, metric.variant) == ("b", "vs-a")
    assert metric.value == pytest.approx(np.mean(ratios))
    assert metric.ci_low < metric.value < metric.ci_high
    assert list(relative_errors([a, b], "c")) == []
    (same,) = relative_errors([a, run("again", 0)[0]], "a")
    assert (same.metric.value, same.metric.ci_low, same.metric.ci_high) == (1, 1, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("errors", [0, 1])
def test_there_are_no_errors_relative_to_a_baseline_that_hardly_errs(errors: int) -> None:
    (a, _), (b, _) = run("a", 0), run("b", 1)
    cells = {name: replace(e, rows=rows(np.arange(N) >= errors)) for name, e in a.evaluations.items()}
    assert list(relative_errors([replace(a, evaluations=cells), b], "a")) == []
