"""Gradient efficiency, agreement of two gradients, and the first-order radius against a distance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from robustgen.metrics.calibration import Resampled
from robustgen.metrics.intervals import resampled_sums, resamples
from robustgen.types import MIN_LEVELS

Array = np.ndarray
FEWEST = 10
"""The fewest samples of a correlation or a median."""


class Information(NamedTuple):
    """Both sides of I-MMSE for each sample, in nats; their means are the two estimates.

    ``gradient``: half the integral of its guidance gain over gamma = 1 / sigma^2, in squared pixels;
    ``label``: by how much its cross-entropy falls from the noisiest level to the least noisy one.
    """

    ids: Array
    gradient: Array
    label: Array


def information(table: pd.DataFrame) -> Information | None:
    """From the table of the sweep; None with fewer than MIN_LEVELS of its levels that the model knows.

    The integral is the trapezoid rule over log gamma, where G gamma d log gamma = G d gamma: levels are
    spaced by their ratios, and G gamma changes slowly between them.
    """
    errors = table.pivot(index="sample_id", columns="sigma", values=["reference_error", "guided_error"])
    entropy = table.pivot(index="sample_id", columns="sigma", values="cross_entropy").dropna()
    sigmas = entropy.columns.to_numpy(np.float64)
    if len(sigmas) < MIN_LEVELS or not len(entropy):
        return None
    errors = errors.loc[entropy.index]
    gain = (errors["reference_error"] - errors["guided_error"])[sigmas].to_numpy(np.float64)
    gamma = sigmas**-2.0
    integral = np.trapezoid((gain * gamma)[:, ::-1], np.log(gamma)[::-1], axis=1)
    drop = entropy[sigmas[-1]].to_numpy(np.float64) - entropy[sigmas[0]].to_numpy(np.float64)
    return Information(entropy.index.to_numpy(), integral / 2, drop)


def ratio(above: Array, below: Array, places: Array) -> Resampled:
    """The ratio of the sums of two values per sample."""
    pairs = np.stack([above[places], below[places]], 1)
    sums = resampled_sums(pairs)
    return Resampled(float(pairs[:, 0].sum() / pairs[:, 1].sum()), sums[:, 0] / sums[:, 1])


def cosine(table: pd.DataFrame) -> Resampled:
    """The mean over samples of the cosine between two gradients."""
    lengths = np.sqrt(table["gradient_square"] * table["difference_square"])
    each = (table["agreement_dot"] / lengths).to_numpy(np.float64)
    return ratio(each, np.ones(len(each)), np.arange(len(each)))


def relative_error(table: pd.DataFrame) -> Resampled:
    """sqrt(sum |g - d|^2 / sum |d|^2), g being sigma^2 grad log p(label | y) and d D(y, label) - D(y)."""
    squares = table["gradient_square"] + table["difference_square"] - 2 * table["agreement_dot"]
    whole = table["difference_square"].to_numpy(np.float64)
    found = ratio(squares.to_numpy(np.float64), whole, np.arange(len(whole)))
    return Resampled(max(found.value, 0.0) ** 0.5, np.sqrt(found.replicates.clip(0)))


def rank_correlation(table: pd.DataFrame) -> Resampled:
    """Spearman's correlation of the first-order radius and the distance found."""
    return _over_resamples(table, lambda radius, distance, margin: _spearman(radius, distance))


def margin_correlation(table: pd.DataFrame) -> Resampled:
    """Spearman's correlation of the margin, whose gradient is left out, and the distance found."""
    return _over_resamples(table, lambda radius, distance, margin: _spearman(margin, distance))


def partial_rank_correlation(table: pd.DataFrame) -> Resampled:
    """The same correlation of radius and distance with the margin given: what the gradient's length adds.

    r_rd.m = (r_rd - r_rm r_dm) / sqrt((1 - r_rm^2) (1 - r_dm^2)), of ranks; 0 where the margin says all.
    """

    def partial(radius: Array, distance: Array, margin: Array) -> Array:
        rd, rm, dm = _spearman(radius, distance), _spearman(radius, margin), _spearman(distance, margin)
        rest = (1 - rm**2) * (1 - dm**2)
        return np.where(rest > 1e-12, (rd - rm * dm) / np.sqrt(rest.clip(1e-12)), 0.0)

    return _over_resamples(table, partial)


def median_ratio(table: pd.DataFrame) -> Resampled:
    """The median of distance / first-order radius: 1 where the margin is linear up to the boundary."""
    return _over_resamples(table, lambda radius, distance, margin: np.median(distance / radius, 1))


def median_distance(table: pd.DataFrame) -> Resampled:
    """The median L2 distance of the nearest wrong picture, in pixel units."""
    return _over_resamples(table, lambda radius, distance, margin: np.median(distance, 1))


def _over_resamples(table: pd.DataFrame, statistic) -> Resampled:  # type: ignore[no-untyped-def]
    """``statistic`` maps radii, distances and margins (rows, n) to (rows,)."""
    columns = [table[name].to_numpy(np.float64) for name in ("first_order", "distance", "margin")]
    value = statistic(*(column[None] for column in columns))[0]
    n, found = len(table), []
    for counts in np.array_split(resamples(n), 20):
        chosen = np.stack([np.repeat(np.arange(n), row) for row in counts])
        found.append(statistic(*(column[chosen] for column in columns)))
    return Resampled(float(value), np.concatenate(found))


def _spearman(a: Array, b: Array) -> Array:
    """Rank correlations of the rows of a and b, (rows, n)."""
    a, b = (rankdata(side, axis=1) for side in (a, b))
    a, b = (side - side.mean(1, keepdims=True) for side in (a, b))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.where(size > 0, (a * b).sum(1) / np.maximum(size, 1e-300), 0.0)
