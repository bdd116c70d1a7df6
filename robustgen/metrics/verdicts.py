"""What c right answers in m draws say of a model whose answers are random: three verdicts a sample.

All take ``correct`` int (n,), how many of a sample's ``draws`` int (n,) were right. One draw, as
deterministic models have, makes all three the same.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from robustgen.errors import UserError
from robustgen.metrics.intervals import Interval

Array = np.ndarray
WORST_OF = 10
SURELY = 3.0  # standard deviations, within which the draws of one picture may differ by chance
MAJORITY = "majority"
WORST = f"worst-of-{WORST_OF}"
"""The variants of an accuracy by majority and worst of K; the mean is the one without a name."""


def mean(correct: Array, draws: Array) -> Array:
    """c / m, (n,): unbiased for the probability p that one answer is right."""
    return correct / draws


def majority(correct: Array, draws: Array) -> Array:
    """[c > m / 2], bool (n,): whether most of the draws were right; a tie is wrong."""
    return 2 * correct > draws


def fell(before: Array, after: Array, draws: Array) -> Array:
    """Whether shares of right draws (n,) fell, of several ``draws`` by more than these differ by chance:
    three standard deviations of a difference, which are 3 sqrt(1 / 2m) at most."""
    return before - after > np.where(draws > 1, SURELY * np.sqrt(0.5 / draws), 0)


def worst_of(k: int, correct: Array, draws: Array) -> Array:
    """C(c, k) / C(m, k), (n,): the share of all choices of k draws in which every one is right.

    Unbiased for p^k, the probability that a model which is asked k times errs never. A sample with
    fewer than k draws is a UserError.
    """
    if (draws < k).any():
        raise UserError(f"the worst of {k} draws needs {k} of them", got=f"{int(draws.min())} of a sample")
    factors = [np.maximum(correct - i, 0) / (draws - i) for i in range(k)]
    return np.prod(factors, axis=0)


def share_interval(values: Array) -> Interval:
    """95 % interval of the mean of values (n,) in [0, 1]: Student's t, cut off at 0 and 1.

    Two zeros and two ones are added to the values, as Agresti and Coull (1998) do for a rate, so
    that n equal values do not pass for certainty. It is stretched to the mean where it misses it.
    """
    value = values.mean()
    padded = np.concatenate([values, [0, 0, 1, 1]])
    half = stdtrit(len(padded) - 1, 0.975) * padded.std(ddof=1) / math.sqrt(len(padded))
    low, high = min(value, padded.mean() - half), max(value, padded.mean() + half)
    return Interval(max(0.0, float(low)), min(1.0, float(high)))
