"""The numbers that the gradient readouts leave, from tables that a test says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from robustgen.metrics.gradient_estimates import gradient_estimates
from robustgen.metrics.rows import Evaluation, Run

N = 40


def numbers(distance: np.ndarray) -> dict[str, float]:
    """The numbers of right pictures with these distances (N,), and radii from 0.1 to 1."""
    radius = np.linspace(0.1, 1, N)
    nothing = dict.fromkeys(("share", "random_share", "agreement_dot"), np.nan)
    table = pd.DataFrame(
        {
            "sample_id": np.arange(N), "sigma": 0.5, "margin": radius, "first_order": radius,
            "distance": distance, **nothing, "gradient_square": np.nan, "difference_square": np.nan,
        }
    )  # fmt: skip
    explained = Evaluation({"name": "explained", "kind": "explained"}, None, N, table=table)
    run = Run("m", {}, {"explained": explained})
    return {e.metric.metric: e.metric.value for e in gradient_estimates(run)}


def test_where_no_wrong_picture_was_found_it_is_farther_than_any() -> None:
    distance = 2 * np.linspace(0.1, 1, N)
    distance[-4:] = np.nan
    found = numbers(distance)
    everywhere = 2 * np.linspace(0.1, 1, N)
    assert found["minimal_distance"] == pytest.approx(np.median(everywhere))
    assert found["radius_ratio"] == pytest.approx(2)
    assert found["radius_correlation"] == pytest.approx(1)


def test_a_median_that_nobody_found_is_not_given() -> None:
    distance = 2 * np.linspace(0.1, 1, N)
    distance[N // 2 :] = np.nan
    found = numbers(distance)
    assert "minimal_distance" not in found
    assert "radius_ratio" not in found
    assert found["radius_correlation"] == pytest.approx(1)
