"""Intervals of estimates whose resampling is biased, by simulation; what is read of random verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from robustgen.audit import AUDIT
from robustgen.metrics import comparisons
from robustgen.metrics.comparisons import Key, compare
from robustgen.metrics.measure import after_stages, measure
from robustgen.metrics.rows import Evaluation, Rows, Run
from robustgen.types import Metric

SIMULATIONS, N = 40, 400
ERRORS = ("ece", "adaptive_ece", "classwise_ece", "brier_reliability")


def run_of(rng: np.random.Generator, temperature: float) -> Run:
    """A run whose labels were drawn from softmax(logits); it says softmax(logits / temperature)."""
    logits = rng.normal(0, 3, (N, 10))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((N, 1))).argmax(1)
    rows = rows_of(logits / temperature, labels, np.ones(N, int), logits.argmax(1) == labels)
    return Run("m", {"model": {}}, {"clean": Evaluation({"name": "clean", "kind": "clean"}, rows, N)})


def rows_of(logits: np.ndarray, labels: np.ndarray, draws: np.ndarray, correct: np.ndarray) -> Rows:
    n = len(labels)
    nothing = np.full(n, None)
    return Rows(
        np.arange(n), labels, logits, draws, correct.astype(int), np.full(n, np.nan),
        nothing, nothing, nothing, nothing, nothing,
    )  # fmt: skip


def calibration_errors(temperature: float) -> Iterator[Metric]:
    rng = np.random.default_rng(0)
    for _ in range(SIMULATIONS):
        found = measure(run_of(rng, temperature))
        yield from (e.metric for e in found if e.metric.metric in ERRORS)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_interval_of_a_calibration_error_holds_its_estimate(temperature: float) -> None:
    found = list(calibration_errors(temperature))
    assert len(found) == len(ERRORS) * SIMULATIONS
    assert all(0 <= m.ci_low <= m.value <= m.ci_high for m in found)


def test_the_interval_of_a_calibration_error_holds_the_truth() -> None:
    # resamples of a perfectly calibrated model vary around what chance makes, not around 0, its true error
    perfect = [m.ci_low == 0 for m in calibration_errors(1.0)]
    assert np.mean(perfect) > 0.85
    truth = 0.1615  # of 400,000 samples
    sharp = list(calibration_errors(0.5))
    held = [m.ci_low <= truth <= m.ci_high for m in sharp if m.metric in ("ece", "adaptive_ece")]
    assert np.mean(held) > 0.85
    assert np.mean([m.ci_low > 0 for m in sharp]) > 0.85


def test_the_reliability_of_one_who_is_sure_and_wrong_is_beyond_1_and_so_is_its_interval() -> None:
    labels = np.r_[np.zeros(300, int), np.ones(100, int)]
    logits = np.zeros((N, 3))
    logits[:, 1] = 8.0
    rows = rows_of(logits, labels, np.ones(N, int), labels == 1)
    run = Run("m", {"model": {}}, {"clean": Evaluation({"name": "clean", "kind": "clean"}, rows, N)})
    (found,) = (e.metric for e in measure(run) if e.metric.metric == "brier_reliability")
    assert 1 < found.ci_low < found.value < found.ci_high <= 2


# Of four samples 32, 31, 16 and 0 of 32 draws are right on the clean picture, and no more under attack.
CLEAN, ATTACKED = np.array([32, 31, 16, 0]), np.array([32, 10, 16, 0])


def drawn(model: str, draws: int) -> Run:
    """A stochastic run; with one draw, the deterministic one whose verdicts are those of the majority."""

    def rows(correct: np.ndarray) -> Rows:
        correct = correct if draws > 1 else 2 * correct > 32
        return rows_of(np.eye(4), np.arange(4), np.full(4, draws), correct)

    attack = {"kind": "attack", "norm": "linf", "eps": 0.1, "cascade": []}
    details = [{"name": "clean", "kind": "clean"}, {"name": "a", **attack}, {"name": "b", **attack}]
    counts = [CLEAN, CLEAN[::-1], ATTACKED]
    evaluations = {d["name"]: Evaluation(d, rows(c), 4) for d, c in zip(details, counts, strict=True)}
    return Run(model, {"model": {}}, evaluations)


def accuracies(run: Run) -> dict[Key, float]:
    found = [e.metric for e in measure(run)]
    return {Key(m.evaluation, m.variant, m.metric): m.value for m in found if "accuracy" in m.metric}


def test_a_stochastic_model_has_three_accuracies_and_a_deterministic_one_has_one() -> None:
    found = accuracies(drawn("m", 32))
    choices = {c: np.prod([(c - i) / (32 - i) for i in range(10)]) for c in (32, 31, 16)}
    expected = {"": 79 / 128, "majority": 0.5, "worst-of-10": sum(choices.values()) / 4}
    for evaluation, metric in (("clean", "accuracy"), ("a", "robust_accuracy")):
        here = {k.variant: v for k, v in found.items() if (k.evaluation, k.metric) == (evaluation, metric)}
        assert here == pytest.approx(expected)
    assert found[Key("b", "", "robust_accuracy")] == pytest.approx(58 / 128)
    assert {k.variant for k in accuracies(drawn("m", 1))} == {""}


def test_the_worst_case_of_a_stochastic_model_is_by_majority() -> None:
    found = {k: v for k, v in accuracies(drawn("m", 32)).items() if k.evaluation.startswith("worst")}
    # of the two samples that most draws get right as they are, "a" turns one and "b" the other
    assert found == {Key("worst-linf-0.1", "majority", "robust_accuracy"): 0.0}


def test_one_eps_in_two_floats_has_one_worst_case() -> None:
    whole = drawn("m", 1)
    a, b = (
        replace(whole.evaluations[name], detail=whole.evaluations[name].detail | {"eps": eps})
        for name, eps in (("a", 0.1 * 3), ("b", 0.3))
    )
    assert a.detail["eps"] != b.detail["eps"]
    run = replace(whole, evaluations=whole.evaluations | {"a": a, "b": b})
    worst = [e.metric for e in measure(run) if e.metric.evaluation.startswith("worst")]
    assert [(m.evaluation, m.value) for m in worst] == [("worst-linf-0.3", 0.0)]


def test_a_stochastic_and_a_deterministic_model_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparisons, "LEAST", 4)
    key = Key("clean", "", "accuracy")
    both = [e for draws in (32, 1) for e in measure(drawn(f"of-{draws}", draws))]
    (test,) = compare(both, [key])
    assert (test.test, test.n) == ("bootstrap", 4)
    assert test.difference == pytest.approx(79 / 128 - 0.5)


def test_what_the_audit_broke_was_right_after_every_stage_before_it() -> None:
    rows = rows_of(np.eye(4), np.arange(4), np.ones(4, int), np.array([True, False, False, False]))
    rows = replace(rows, broken_by=np.array([None, AUDIT, "second", None]))  # the last is wrong when clean
    found = after_stages(rows, ["first", "second"])
    assert found["first"].tolist() == [True, True, True, False]
    assert found["second"].tolist() == [True, True, False, False]
