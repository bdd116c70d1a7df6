"""The verdict on a stochastic model from c correct answers in m draws: mean, majority or worst of K.

All take ``correct`` int (n,), how many of a sample's ``draws`` int (n,) were correct. For one draw, as
deterministic models have, the three are equal.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from robustgen.errors import UserError
from robustgen.metrics.intervals import Interval

Array = np.ndarray
WORST_OF = 10
CHANCE_SIGMAS = 3.0  # standard deviations by which two sets of draws of one picture may differ by chance
MAJORITY = "majority"
WORST = f"worst-of-{WORST_OF}"
"""The variants of an accuracy by majority and by worst of K; the mean's variant is ""."""


def mean(correct: Array, draws: Array) -> Array:
    """c / m, (n,): an unbiased estimate of the probability p that one answer is correct."""
    return correct / draws


def majority(correct: Array, draws: Array) -> Array:
    """[c > m / 2], bool (n,): whether most draws were correct; a tie counts as wrong."""
    return 2 * correct > draws


def surely_fell(before: Array, after: Array, draws: Array) -> Array:
    """Whether the share of correct draws fell from ``before`` to ``after``, bool (n,); with several ``draws``
    m, by more than 3 sqrt(1 / 2m), three times the largest standard deviation of the difference by chance."""
    return before - after > np.where(draws > 1, CHANCE_SIGMAS * np.sqrt(0.5 / draws), 0)


def worst_of(k: int, correct: Array, draws: Array) -> Array:
    """C(c, k) / C(m, k), (n,): the share of all subsets of k draws in which every draw is correct.

    An unbiased estimate of p^k, the probability that k answers are all correct. UserError where a sample has
    fewer than k draws.
    """
    if (draws < k).any():
        raise UserError(f"the worst of {k} draws needs at least {k} draws a sample", got=int(draws.min()))
    factors = [np.maximum(correct - i, 0) / (draws - i) for i in range(k)]
    return np.prod(factors, axis=0)


def share_interval(values: Array) -> Interval:
    """95 % interval of the mean of values (n,) in [0, 1]: Student's t, cut off at 0 and 1.

    Two zeros and two ones are added to the values, as Agresti and Coull (1998) do for a rate, so that the
    interval of n equal values has a width. It is extended to the mean where it does not contain it.
    """
    value = values.mean()
    padded = np.concatenate([values, [0, 0, 1, 1]])
    half = stdtrit(len(padded) - 1, 0.975) * padded.std(ddof=1) / math.sqrt(len(padded))
    low, high = min(value, padded.mean() - half), max(value, padded.mean() + half)
    return Interval(max(0.0, float(low)), min(1.0, float(high)))
