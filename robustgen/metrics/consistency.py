"""How large a calibration error can be by chance alone, for a perfectly calibrated model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from robustgen.metrics.calibration import BINS, width_bins
from robustgen.metrics.intervals import RESAMPLES

Array = np.ndarray
STREAM = 2  # of random numbers, beside those of resamples
QUANTILE = 0.975
ROUNDING = 1e-9  # of sums of probabilities: a bin of few samples has few gaps that it can have


class _Gaps(NamedTuple):
    """Sums of (probability - outcome) over the samples of each bin: of equal width and of equal mass, of the
    top label; and of each class and bin, (classes * 16,)."""

    width: Array
    mass: Array
    cells: Array


def by_chance(probabilities: Array, labels: Array, versions: int = 1) -> dict[str, float]:
    """How much chance alone may have added to each calibration error, from 1000 sets of labels drawn from the
    probabilities (n, classes) themselves (consistency resampling, Broecker and Smith 2007).

    An error is a sum of absolute values, so noise alone makes it positive, and bootstrap resamples vary
    around that value instead of 0. Returned is the 97.5 % quantile of the draws' errors, over the bins whose
    observed gap is no larger than the largest gap of a draw; in the other bins the gap is real, and noise
    raises it as often as it lowers it. For ``brier_reliability``, a sum of squares, it is over all bins,
    since noise adds its variance to each. ``versions``: as in ``calibration``; those of a picture share their
    random number.
    """
    n, classes = probabilities.shape
    top = probabilities.argmax(1)
    confidence = probabilities[np.arange(n), top]
    bins, order = width_bins(confidence), np.argsort(confidence, kind="stable")
    edges = np.unique(np.round(np.linspace(0, n, BINS + 1)).astype(int))[:-1]
    cell = width_bins(probabilities) + (BINS + 1) * np.arange(classes)
    count = classes * (BINS + 1)
    said = np.bincount(cell.ravel(), probabilities.ravel(), count)

    def gaps(labels: Array) -> _Gaps:
        off = confidence - (labels == top)
        return _Gaps(
            np.bincount(bins, off, BINS + 1),
            np.add.reduceat(off[order], edges),
            said - np.bincount(cell[np.arange(n), labels], minlength=count),
        )

    drawn = _Gaps(*map(np.stack, zip(*map(gaps, _drawn(probabilities, versions)), strict=True)))
    ece, adaptive, classwise = map(_in_doubtful_bins, gaps(labels), drawn)
    size = np.maximum(np.bincount(cell.ravel(), minlength=count), 1)
    return {
        "ece": ece / n,
        "adaptive_ece": adaptive / n,
        "classwise_ece": classwise / (n * classes),
        "brier_reliability": float(np.quantile((drawn.cells**2 / size).sum(1), QUANTILE)) / n,
    }


def _in_doubtful_bins(seen: Array, drawn: Array) -> float:
    """The quantile of the draws' summed errors in the bins where one has as large a gap as is seen."""
    errors = np.abs(drawn)
    doubtful = np.abs(seen) <= errors.max(0) + ROUNDING
    return float(np.quantile(errors[:, doubtful].sum(1), QUANTILE))


def _drawn(probabilities: Array, versions: int) -> Iterator[Array]:
    """Labels (n,), again and again, each with its probability: the first class up to which these add up to
    more than a uniform number."""
    n, classes = probabilities.shape
    upto = probabilities.cumsum(1)
    upto[:, -1] = 1
    # one sorted line for all rows, the i-th of them in [i, i + 1]
    line = (np.minimum(upto, 1) + np.arange(n)[:, None]).ravel()
    rng = np.random.default_rng([STREAM, n // versions])
    for _ in range(RESAMPLES):
        uniform = np.repeat(rng.random(n // versions), versions)
        place = np.searchsorted(line, uniform + np.arange(n), side="right")
        yield np.minimum(place - classes * np.arange(n), classes - 1)
