"""The three verdicts of a random model against exact sums over the binomial distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from robustgen.errors import UserError
from robustgen.metrics import verdicts

M = 32
C = np.arange(M + 1)
DRAWS = np.full(M + 1, M)
P = (0.0, 0.03, 0.5, 0.8, 0.999, 1.0)


def expected(values: np.ndarray, p: float) -> float:
    """E[values[c]] for c ~ Binomial(32, p)."""
    weights = [math.comb(M, c) * p**c * (1 - p) ** (M - c) for c in range(M + 1)]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True))


@pytest.mark.parametrize("p", P)
def test_the_mean_is_unbiased(p: float) -> None:
    assert expected(verdicts.mean(C, DRAWS), p) == pytest.approx(p, abs=1e-12)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("k", [1, 2, 10, 32])
def test_the_worst_of_k_is_unbiased(p: float, k: int) -> None:
    assert expected(verdicts.worst_of(k, C, DRAWS), p) == pytest.approx(p**k, abs=1e-12)


@pytest.mark.parametrize("p", P)
def test_a_majority_is_more_than_half(p: float) -> None:
    found = verdicts.majority(C, DRAWS)
    assert expected(found, p) == pytest.approx(stats.binom.sf(16, M, p), abs=1e-12)
    assert not found[16]


def test_the_worst_of_k_counts_the_choices_of_k_draws() -> None:
    found = verdicts.worst_of(10, C, DRAWS)
    assert found == pytest.approx([math.comb(c, 10) / math.comb(32, 10) for c in range(33)], abs=1e-15)
    assert (found[:10] == 0).all()


def test_of_one_draw_all_are_the_same() -> None:
    correct, draws = np.array([0, 1]), np.array([1, 1])
    for found in (
        verdicts.mean(correct, draws), verdicts.majority(correct, draws), verdicts.worst_of(1, correct, draws)
    ):  # fmt: skip
        assert found.tolist() == [0, 1]


def test_equal_models_seldom_fall_by_more_than_chance_and_one_draw_falls_at_once() -> None:
    for m in (8, 32):
        p = np.tile([0.5, 0.9], 20_000)
        before, after = (np.random.default_rng(k).binomial(m, p) / m for k in range(2))
        assert verdicts.surely_fell(before, after, np.full(len(p), m)).mean() < 0.00135 * 1.5
    draws = np.array([32, 32, 1, 1])
    found = verdicts.surely_fell(np.array([0.7, 1.0, 1.0, 0.0]), np.array([0.4, 0.3, 0.0, 1.0]), draws)
    assert found.tolist() == [False, True, True, False]


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(UserError, match="worst of 10"):
        verdicts.worst_of(10, np.array([3, 3]), np.array([32, 9]))


@pytest.mark.parametrize("p", [0.02, 0.2, 0.5, 0.95])
@pytest.mark.parametrize("n", [32, 200])
def test_the_interval_of_a_rate_holds_the_truth(p: float, n: int) -> None:
    held = 0.0
    for k in range(n + 1):
        low, high = verdicts.share_interval((np.arange(n) < k).astype(float))
        held += stats.binom.pmf(k, n, p) * (low <= p <= high)
    assert held > 0.93


@pytest.mark.parametrize(("a", "b"), [(5, 0.5), (0.1, 2), (30, 30)])
def test_the_interval_of_a_mean_share_holds_the_truth_and_its_estimate(a: float, b: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.binomial(M, rng.beta(a, b, (1000, 64))) / M
    found = [(*verdicts.share_interval(v), v.mean()) for v in values]
    assert np.mean([low <= a / (a + b) <= high for low, high, _ in found]) > 0.93
    assert all(0 <= low <= mean <= high <= 1 for low, high, mean in found)


def test_equal_shares_do_not_pass_for_certainty() -> None:
    assert verdicts.share_interval(np.zeros(100))[1] == pytest.approx(0.05, abs=0.02)
    assert verdicts.share_interval(np.ones(100))[0] == pytest.approx(0.95, abs=0.02)


def test_the_width_is_that_of_the_mean_of_many_samples() -> None:
    values = np.random.default_rng(0).beta(2, 2, 5000)
    low, high = verdicts.share_interval(values)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(1 / 20 / 5000), rel=0.03)
