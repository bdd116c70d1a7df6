"""Intervals of estimates whose resampling is biased, by simulation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from robustgen.metrics import estimates
from robustgen.metrics.rows import Evaluation, Rows, Run
from robustgen.types import Metric

SIMULATIONS, N = 40, 400


def run_of(rng: np.random.Generator, temperature: float) -> Run:
    """A run whose labels were drawn from softmax(logits); it says softmax(logits / temperature)."""
    logits = rng.normal(0, 3, (N, 10))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (p.cumsum(1) > rng.random((N, 1))).argmax(1)
    nothing = np.full(N, None)
    rows = Rows(
        np.arange(N), labels, logits / temperature, logits.argmax(1) == labels, np.full(N, np.nan),
        nothing, nothing, nothing, nothing, nothing,
    )  # fmt: skip
    return Run("m", {"model": {}}, {"clean": Evaluation({"name": "clean", "kind": "clean"}, rows, N)})


def calibration_errors(temperature: float) -> Iterator[Metric]:
    rng = np.random.default_rng(0)
    for _ in range(SIMULATIONS):
        found = estimates.measure(run_of(rng, temperature))
        yield from (e.metric for e in found if e.metric.metric in ("ece", "adaptive_ece"))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_interval_of_a_calibration_error_holds_its_estimate(temperature: float) -> None:
    found = list(calibration_errors(temperature))
    assert len(found) == 2 * SIMULATIONS
    assert all(0 <= m.ci_low <= m.value <= m.ci_high for m in found)


def test_the_interval_of_a_calibration_error_holds_the_truth() -> None:
    # percentile intervals of a perfectly calibrated model never reach down to 0, its true error
    perfect = [m for m in calibration_errors(1.0) if m.metric == "ece"]
    assert sum(m.ci_low == 0 for m in perfect) >= SIMULATIONS / 4
    truth = 0.1615  # of 400,000 samples
    held = [m.ci_low <= truth <= m.ci_high for m in calibration_errors(0.5)]
    assert np.mean(held) > 0.85
