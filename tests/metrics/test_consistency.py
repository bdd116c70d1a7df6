"""What chance alone makes of a calibration error, against draws made another way."""

from __future__ import annotations

import numpy as np
import pytest

from robustgen.metrics import calibration, consistency
from robustgen.metrics.consistency import by_chance

N, CLASSES = 300, 4
LOGITS = np.random.default_rng(0).normal(0, 2, (N, CLASSES))
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


@pytest.mark.parametrize("metric", ["ece", "adaptive_ece", "classwise_ece", "brier_reliability"])
def test_the_quantile_is_that_of_labels_drawn_from_the_model(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.array([int(k) for k in next(consistency._drawn(P, 1))])
    found = by_chance(P, labels)[metric]
    # the metrics resample the pictures as well, of which nothing is wanted here
    monkeypatch.setattr(calibration, "resamples", lambda n: np.ones((1, n), np.uint16))
    monkeypatch.setattr(calibration, "resampled_sums", lambda values: values.sum(0, keepdims=True))
    rng, drawn = np.random.default_rng(1), []
    for _ in range(400):
        labels = np.array([rng.choice(CLASSES, p=row) for row in P])
        parts = calibration.brier_parts(P, labels)
        error = parts[metric] if metric in parts else getattr(calibration, metric)(P, labels)
        drawn.append(error.value)
    assert np.mean(np.array(drawn) < found) == pytest.approx(0.975, abs=0.02)


def test_labels_are_drawn_with_their_probabilities() -> None:
    p = np.array([[0.2, 0.0, 0.8], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.3, 0.3, 0.4]])
    labels = np.stack(list(consistency._drawn(p, 1)))
    shares = np.stack([(labels == k).mean(0) for k in range(3)], 1)
    np.testing.assert_allclose(shares, p, atol=0.05)
    assert (shares[p == 0] == 0).all()


def test_all_versions_of_a_picture_have_one_label() -> None:
    p = np.repeat(np.random.default_rng(2).dirichlet(np.ones(5), 7), 3, axis=0)
    for labels in consistency._drawn(p, 3):
        assert (labels.reshape(7, 3) == labels[::3, None]).all()


def test_rounding_draws_no_class_that_is_not_there() -> None:
    p = np.full((50, 3), 1 / 3)
    p[:, 2] -= 1e-9  # a sum below 1
    assert {int(k) for labels in consistency._drawn(p, 1) for k in labels} == {0, 1, 2}


def test_bins_that_are_surely_off_are_not_put_down_to_chance() -> None:
    p = np.tile([0.9, 0.1], (400, 1))
    p[200:] = [0.6, 0.4]
    calibrated = np.r_[np.arange(200) % 10 == 0, np.arange(200) % 5 < 2].astype(int)
    off = np.r_[np.arange(200) % 2 == 0, np.arange(200) % 5 < 2].astype(int)  # 0.9 is right half of the time
    whole, half = (by_chance(p, labels) for labels in (calibrated, off))
    for metric in ("ece", "adaptive_ece", "classwise_ece"):
        assert 0.2 * whole[metric] < half[metric] < 0.85 * whole[metric]
    assert half["brier_reliability"] == whole["brier_reliability"]
