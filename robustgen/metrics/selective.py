"""Selective prediction: error rate (risk) of the most confident samples against their share (coverage)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustgen.metrics.calibration import Resampled
from robustgen.metrics.intervals import resamples

Array = np.ndarray
BLOCKS = 20  # of resamples, to hold few numbers at a time


class RiskCoverage(NamedTuple):
    """``risk``: the error rate on the most confident share ``coverage`` of the samples; both (n,)."""

    coverage: Array
    risk: Array


def risk_coverage(sure: Array, right: Array) -> RiskCoverage:
    """Risk at coverage 1/n, 2/n, ..., 1 (El-Yaniv and Wiener 2010).

    Samples are ordered by any score that rises with the confidence; ``rows.log_odds`` separates confidences
    that round to 1. Samples of equal score each count as their mean error, which is the mean over all their
    orders.
    """
    size, wrong = _groups(sure, right)
    errors = np.repeat(wrong / size, size).cumsum()
    count = np.arange(1, len(right) + 1)
    return RiskCoverage(count / len(right), errors / count)


def aurc(sure: Array, right: Array, versions: int = 1) -> Resampled:
    """Area under risk against coverage: the mean of the n risks (Geifman et al. 2019, arXiv:1805.08206).

    In [0, 1], lower is better. Without ties it is 1 - aurra of pytorch-ood, its reference.
    ``versions``: as in ``calibration``.
    """
    return both(sure, right, versions)[0]


def e_aurc(sure: Array, right: Array, versions: int = 1) -> Resampled:
    """AURC minus that of the optimal order, all correct samples before all wrong ones (same reference): the
    part of AURC that is due to the confidence alone."""
    return both(sure, right, versions)[1]


def both(sure: Array, right: Array, versions: int = 1) -> tuple[Resampled, Resampled]:
    """AURC and E-AURC in one pass."""
    n = len(right)
    order = np.argsort(-sure, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(sure[order])) + 1)
    wrong = ~right[order].astype(bool)
    harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, n + 1)))

    def value(counts: Array) -> Array:
        drawn = counts[:, order].astype(np.int64)
        size, lost = drawn, drawn * wrong
        if len(starts) < n:  # some are equally sure
            size, lost = (np.add.reduceat(each, starts, axis=1) for each in (size, lost))
        found, errors = _area(size, lost, harmonic), lost.sum(1)
        best = np.stack([n - errors, errors], 1), np.stack([0 * errors, errors], 1)
        return np.stack([found, found - _area(*best, harmonic)])

    pictures = np.array_split(resamples(n // versions), BLOCKS)
    replicates = [value(np.repeat(block, versions, axis=1)) for block in pictures]
    values = value(np.ones((1, n), dtype=np.int64))[:, 0].tolist()
    area, excess = map(Resampled, values, np.concatenate(replicates, axis=1))
    return area, excess


def _area(size: Array, lost: Array, harmonic: Array) -> Array:
    """AURC of groups of equal confidence from the surest: sizes and errors (b, groups).

    Within a group of c samples with errors m c, after N samples with E errors, the i-th risk is
    (E + i m) / (N + i), and sum_i of it is m c + (E - m N) (H_{N+c} - H_N) with harmonic numbers H.
    """
    seen = size.cumsum(1)
    before, errors = seen - size, lost.cumsum(1) - lost
    mean = lost / np.maximum(size, 1)
    risks = lost + (errors - mean * before) * np.diff(harmonic.take(seen), axis=1, prepend=0.0)
    return risks.sum(1) / size.sum(1)


def _groups(sure: Array, right: Array) -> tuple[Array, Array]:
    """Size and errors of each group of equal confidence, from the surest."""
    _, place, size = np.unique(-sure, return_inverse=True, return_counts=True)
    return size, np.bincount(place, ~right.astype(bool), len(size))
