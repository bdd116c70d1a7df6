"""How large a calibration error is by chance alone, where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robustgen.metrics.calibration import BINS, width_bins
from robustgen.metrics.intervals import RESAMPLES

Array = np.ndarray
STREAM = 2  # of random numbers, beside those of resamples


def by_chance(probabilities: Array, versions: int = 1) -> dict[str, float]:
    """The 97.5 % quantile of each calibration error over 1000 sets of labels that are drawn from the
    probabilities (n, classes) themselves (consistency resampling, Broecker and Smith 2007).

    An error is a sum of absolute values or squares, so it is above 0 by chance where nothing is wrong, and
    resamples of the pictures vary around that, not around 0. An error that chance alone makes cannot be told
    from 0. ``versions``: as in ``calibration``; those of a picture have one label, and so one random number.
    """
    n, classes = probabilities.shape
    top = probabilities.argmax(1)
    confidence = probabilities[np.arange(n), top]
    bins, order = width_bins(confidence), np.argsort(confidence, kind="stable")
    edges = np.unique(np.round(np.linspace(0, n, BINS + 1)).astype(int))[:-1]
    cell = width_bins(probabilities) + (BINS + 1) * np.arange(classes)
    cells = classes * (BINS + 1)
    said = np.bincount(cell.ravel(), probabilities.ravel(), cells)
    size = np.maximum(np.bincount(cell.ravel(), minlength=cells), 1)

    def errors(labels: Array) -> list[float]:
        gaps = confidence - (labels == top)
        off = said - np.bincount(cell[np.arange(n), labels], minlength=cells)
        return [
            np.abs(np.bincount(bins, gaps, BINS + 1)).sum() / n,
            np.abs(np.add.reduceat(gaps[order], edges)).sum() / n,
            np.abs(off).sum() / (n * classes),
            (off**2 / size).sum() / n,
        ]

    found = np.array([errors(labels) for labels in _drawn(probabilities, versions)])
    names = ("ece", "adaptive_ece", "classwise_ece", "brier_reliability")
    return dict(zip(names, np.quantile(found, 0.975, axis=0).tolist(), strict=True))


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
