"""Paired tests: of models that were not evaluated on the same samples, and of calibration errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_measure import rows_of

from robustgen.metrics import calibration
from robustgen.metrics.calibration_estimates import calibration_estimates
from robustgen.metrics.comparisons import Key, compare
from robustgen.metrics.estimate import Estimate
from robustgen.metrics.rows import Evaluation, Run
from robustgen.types import Metric

NLL, ECE = Key("clean", "", "nll"), Key("clean", "", "ece")
RNG = np.random.default_rng(0)


def mean_of(model: str, values: np.ndarray, ids: np.ndarray) -> Estimate:
    """The mean of values (n,), as the NLL of a model."""
    found = calibration.mean(values)
    metric = Metric(model, *NLL, found.value, 0, 1, len(ids), "nats", False)
    return Estimate(metric, ids, None, found.replicates, lambda k: calibration.mean(values[k]))


def test_models_are_compared_on_the_samples_that_both_have() -> None:
    all_ids, values = np.arange(80), RNG.random(80)
    other = values[20:] + 0.5
    (test,) = compare([mean_of("a", values, all_ids), mean_of("b", other, all_ids[20:])], [NLL])
    assert test.n == 60
    assert test.difference == pytest.approx(-0.5)
    assert test.ci_low == pytest.approx(-0.5)  # the same resamples of the same samples: no spread
    assert test.p_holm < 1e-6


def test_models_without_a_common_sample_are_not_tested() -> None:
    ids, values = np.arange(40), RNG.random(40)
    assert compare([mean_of("a", values, ids), mean_of("b", values, ids + 40)], [NLL]) == []


@pytest.mark.parametrize(("n", "tests"), [(1, 0), (9, 0), (10, 1)])
def test_of_a_handful_of_samples_no_bootstrap_test_is_made(n: int, tests: int) -> None:
    ids, values = np.arange(n), RNG.random(n)
    assert len(compare([mean_of("a", values, ids), mean_of("b", values + 0.5, ids)], [NLL])) == tests


def test_a_pair_whose_replicates_are_not_finite_is_not_tested() -> None:
    ids, values = np.arange(40), RNG.random(40)
    other = np.where(ids == 3, np.nan, values)
    assert compare([mean_of("a", values, ids), mean_of("b", other, ids)], [NLL]) == []


def test_the_interval_of_a_difference_of_calibration_errors_holds_it() -> None:
    ids = np.arange(200)
    for _ in range(20):
        pair = []
        for model in "ab":
            p = RNG.dirichlet(np.ones(5), 200)
            y = (p.cumsum(1) > RNG.random((200, 1))).argmax(1)
            if model == "b":  # sure and right: no error, so the bias of a's does not cancel
                p = np.eye(5)[y]
            found = calibration.ece(p, y)
            metric = Metric(model, *ECE, found.value, 0, 1, 200, "", False)
            pair.append(Estimate(metric, ids, None, found.replicates))
        (test,) = compare(pair, [ECE])
        assert test.ci_low <= test.difference <= test.ci_high


def ece_of(model: str, p: np.ndarray, y: np.ndarray, ids: np.ndarray) -> Estimate:
    """The ECE of probabilities p (n, classes) for labels y, as ``measure`` makes it."""
    rows = replace(rows_of(np.log(p), y, np.ones(len(y), int), p.argmax(1) == y), ids=ids)
    run = Run(model, {"model": {}}, {"clean": Evaluation({"name": "clean", "kind": "clean"}, rows, len(y))})
    return next(e for e in calibration_estimates(run) if e.metric.metric == "ece")


def sharp_and_vague(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two calibrated forecasts of the same labels: one is told 97 % of them, the other none."""
    logits = rng.normal(size=(n, 10))
    vague = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    y = (vague.cumsum(1) > rng.random((n, 1))).argmax(1)
    sharp = np.where(rng.random((n, 1)) < 0.97, np.clip(np.eye(10)[y], 1e-12, 1), vague)
    return sharp / sharp.sum(1, keepdims=True), vague, y


def test_a_difference_of_calibration_errors_that_chance_explains_is_none() -> None:
    rng, ids, p_values = np.random.default_rng(1), np.arange(300), []
    for _ in range(10):
        sharp, vague, y = sharp_and_vague(rng, 300)
        (test,) = compare([ece_of("a", sharp, y, ids), ece_of("b", vague, y, ids)], [ECE])
        p_values.append(test.p)
        if test.p == 1:
            assert test.ci_low <= 0 <= test.ci_high
    assert np.mean(np.array(p_values) < 0.05) <= 0.1  # by the plain bootstrap 0.8


def test_a_difference_of_calibration_errors_that_chance_does_not_explain_is_found() -> None:
    sharp, vague, y = sharp_and_vague(np.random.default_rng(2), 500)
    overconfident = vague**2.5 / (vague**2.5).sum(1, keepdims=True)
    ids = np.arange(500)
    found = [ece_of("a", overconfident, y, ids), ece_of("b", vague, y, ids), ece_of("c", sharp, y, ids)]
    tests = {(t.model_a, t.model_b): t for t in compare(found, [ECE])}
    assert tests["a", "b"].p < 1e-3
    assert tests["a", "b"].ci_low > 0
    assert tests["b", "c"].p == 1


def test_chance_is_that_of_the_common_samples() -> None:
    sharp, vague, y = sharp_and_vague(np.random.default_rng(3), 400)
    ids = np.arange(400)
    (common,) = compare([ece_of("a", sharp, y, ids), ece_of("b", vague[:60], y[:60], ids[:60])], [ECE])
    (alone,) = compare([ece_of(m, p[:60], y[:60], ids[:60]) for m, p in (("a", sharp), ("b", vague))], [ECE])
    assert (common.ci_low, common.ci_high, common.p) == (alone.ci_low, alone.ci_high, alone.p)
