"""Paired tests of models that were not evaluated on the same samples."""

from __future__ import annotations

import numpy as np
import pytest

from robustgen.metrics import calibration
from robustgen.metrics.comparisons import Key, compare
from robustgen.metrics.estimate import Estimate
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
