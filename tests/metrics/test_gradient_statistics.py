"""Correlations and agreement beside scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress, pearsonr, rankdata, spearmanr

from robustgen.metrics import gradient_statistics

N = 80


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    margin = rng.gamma(3, 1, N)
    radius = margin / rng.gamma(5, 0.2, N)
    return pd.DataFrame({"margin": margin, "first_order": radius, "distance": radius * rng.gamma(9, 0.1, N)})


def test_rank_correlations_are_scipys(table: pd.DataFrame) -> None:
    for ours, column in (
        (gradient_statistics.rank_correlation, "first_order"),
        (gradient_statistics.margin_correlation, "margin"),
    ):
        found = ours(table)
        assert found.value == pytest.approx(spearmanr(table[column], table["distance"]).statistic)
        low, high = np.quantile(found.replicates, [0.025, 0.975])
        assert low < found.value < high


def test_the_partial_correlation_is_that_of_what_the_margin_leaves_of_the_ranks(table: pd.DataFrame) -> None:
    ranks = table.apply(rankdata)

    def left(column: str) -> np.ndarray:
        line = linregress(ranks["margin"], ranks[column])
        return ranks[column] - line.slope * ranks["margin"]

    expected = pearsonr(left("first_order"), left("distance")).statistic
    assert gradient_statistics.partial_rank_correlation(table).value == pytest.approx(expected)
    only_margin = table.assign(first_order=table["margin"] * 2)
    assert gradient_statistics.partial_rank_correlation(only_margin).value == 0


def test_medians(table: pd.DataFrame) -> None:
    ratio = np.median(table["distance"] / table["first_order"])
    assert gradient_statistics.median_ratio(table).value == pytest.approx(ratio)
    assert gradient_statistics.median_distance(table).value == pytest.approx(np.median(table["distance"]))


def test_agreement_of_vectors() -> None:
    rng = np.random.default_rng(1)
    d = rng.normal(size=(N, 6))
    g = 0.5 * d + 0.3 * rng.normal(size=d.shape)
    table = pd.DataFrame(
        {
            "agreement_dot": (g * d).sum(1),
            "gradient_square": (g**2).sum(1),
            "difference_square": (d**2).sum(1),
        }
    )
    each = (g * d).sum(1) / np.linalg.norm(g, axis=1) / np.linalg.norm(d, axis=1)
    assert gradient_statistics.cosine(table).value == pytest.approx(each.mean())
    expected = np.sqrt(((g - d) ** 2).sum() / (d**2).sum())
    assert gradient_statistics.relative_error(table).value == pytest.approx(expected)


def test_vectors_that_are_one_have_no_relative_error() -> None:
    table = pd.DataFrame(
        {"agreement_dot": [1.0 + 1e-15] * N, "gradient_square": 1.0, "difference_square": 1.0}
    )
    assert gradient_statistics.relative_error(table).value == 0
