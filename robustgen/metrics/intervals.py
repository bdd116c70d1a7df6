"""How sure a number is: Wilson, Newcombe, the bootstrap, McNemar's test, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtr

Array = np.ndarray

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

RESAMPLES = 1000


class Interval(NamedTuple):
    """The ends of a 95 % confidence interval."""

    low: float
    high: float


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval for a rate (Wilson 1927), without continuity correction.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), with p = successes / n and z = 1.96.

    >>> [round(end, 3) for end in wilson(8, 10)]
    [0.49, 0.943]
    """
    p, z2 = successes / n, Z95**2
    centre = p + z2 / (2 * n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (centre - half) / (1 + z2 / n), (centre + half) / (1 + z2 / n)
    return Interval(0.0 if successes == 0 else low, 1.0 if successes == n else high)


def newcombe(both: int, only_a: int, only_b: int, neither: int) -> Interval:
    """Newcombe's interval (1998, method 10) for the difference of two rates on the same samples, of which
    so many are right by both models, by one alone, by neither: (only_a - only_b) / n.

    From Wilson's ends of p_a and p_b, low = d - sqrt(s^2 - 2 phi s t + t^2) with s = p_a - low_a and
    t = high_b - p_b, high likewise; phi is the correlation of the two, n/2 taken off its numerator where
    that is positive. Agreement on every sample is no certainty here, as it is to resamples.

    >>> [round(end, 3) for end in newcombe(36, 12, 2, 0)]
    [0.057, 0.34]
    """
    n = both + only_a + only_b + neither
    a, b = both + only_a, both + only_b
    low_a, high_a = wilson(a, n)
    low_b, high_b = wilson(b, n)
    excess = float(both * neither - only_a * only_b)
    if excess > 0:
        excess = max(excess - n / 2, 0.0)
    margins = math.sqrt(a) * math.sqrt(n - a) * math.sqrt(b) * math.sqrt(n - b)
    phi = excess / margins if margins else 0.0
    d = (only_a - only_b) / n

    def reach(s: float, t: float) -> float:
        return math.sqrt(s * s - 2 * phi * s * t + t * t)

    return Interval(d - reach(a / n - low_a, high_b - b / n), d + reach(high_a - a / n, b / n - low_b))


@lru_cache(maxsize=4)
def resamples(n: int, stream: int = 0) -> Array:
    """How often each of n samples is drawn in each of 1000 bootstrap resamples, uint16 (1000, n).

    Row b counts the indices default_rng([stream, n]).integers(n, size=(1000, n))[b]. It depends on n
    alone: all metrics and all models that are read on the same samples share their resamples, which
    makes differences between models paired ones.
    """
    rng = np.random.default_rng([stream, n])
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(RESAMPLES)]).astype(
        np.uint16
    )


def resampled_sums(values: Array) -> Array:
    """Sum of values (n, k) over each bootstrap resample of the n samples, (1000, k)."""
    counts = resamples(len(values))
    return np.concatenate([block.astype(np.float64) @ values for block in np.array_split(counts, 20)])


def percentile_interval(value: float, replicates: Array) -> Interval:
    """The 2.5 % and 97.5 % quantiles of a statistic over bootstrap resamples (Efron 1979), stretched to the
    estimate where they miss it."""
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Interval(float(np.minimum(value, low)), float(np.maximum(value, high)))  # NaN stays NaN


def basic_interval(value: float, replicates: Array) -> Interval:
    """The basic bootstrap interval (2 v - q97.5, 2 v - q2.5), stretched to the estimate v where it misses it.

    For a statistic that resampling biases, such as a sum of absolute values: percentiles would add
    the bias once more, and a biased estimate may lie outside of them; here it is taken off.
    """
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Interval(min(value, 2 * value - float(high)), max(value, 2 * value - float(low)))


def area_interval(value: float, replicates: Array, n: int) -> Interval:
    """For an area under precision p of ``n`` samples, which is skewed near 1: from the lower to the higher
    end of the percentile interval and of the basic one of log(p / (1 - p)), since each alone covers too
    little in some settings.

    The logit is that of (n p + 1/2) / (n + 1), so that 0 and 1 have one.
    """

    def logit(p: float) -> float:
        return math.log((n * p + 0.5) / (n * (1 - p) + 0.5))

    def back(z: float) -> float:
        return min(max(((n + 1) / (1 + math.exp(-z)) - 0.5) / n, 0.0), 1.0)

    low, high = percentile_interval(value, replicates)
    reached = [back(2 * logit(value) - logit(float(end))) for end in np.quantile(replicates, [0.975, 0.025])]
    return Interval(min(low, reached[0]), max(high, reached[1]))


def bootstrap_p(difference: float, replicates: Array, n: int) -> float:
    """Two-sided p of "no difference" on n samples: Student's t with n - 1 degrees of freedom, by the
    bootstrap's standard error, which is too small by sqrt((n - 1) / n).

    Not the share of replicates beyond 0, which cannot fall below 1/1000 and so would never pass
    Holm's correction of a table. Where no resample differs, the p of a sign test that all n pass.
    """
    error = float(np.std(replicates, ddof=1)) * math.sqrt(n / (n - 1))
    if error == 0:
        return 1.0 if difference == 0 else 2.0 ** (1 - n)
    return float(2 * stdtr(n - 1, -abs(difference) / error))


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p of McNemar's test (1947): of the samples that exactly one of two models gets
    right, is each model's share one half? 2 P[Binomial(a + b, 1/2) <= min(a, b)], at most 1.

    >>> mcnemar(0, 5)
    0.0625
    """
    n = only_a + only_b
    return min(1.0, 2 * float(bdtr(min(only_a, only_b), n, 0.5))) if n else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p values, in the order given.

    The i-th smallest of m is multiplied by m - i (i from 0), kept monotone and at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]
