"""Calibration metrics: ECE and its variants, NLL, Brier's score and its parts, and temperature scaling.

All take probabilities or log-probabilities of shape (n, classes) and return a value with its bootstrap
replicates, for intervals and paired differences. With several ``versions`` of each picture, in adjacent rows,
a resample draws pictures with all their versions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustgen.metrics.intervals import Z95, resampled_sums, resamples
from robustgen.metrics.rows import log_softmax

Array = np.ndarray
BINS = 15
BIASED = dict.fromkeys(
    ("ece", "adaptive_ece", "classwise_ece", "brier_resolution", "brier_uncertainty"), 1.0
) | {"brier_reliability": 2.0}
"""The metrics that resampling biases, with their largest values: sums of absolute values or squares, which
noise raises, and the uncertainty, which it lowers. Their intervals are basic bootstrap intervals, clipped to
[0, largest value]."""


class Resampled(NamedTuple):
    """A statistic, and its values over 1000 bootstrap resamples, (1000,)."""

    value: float
    replicates: Array


class Bins(NamedTuple):
    """A reliability diagram: mean confidence, share right and number of samples of each bin."""

    confidence: Array
    accuracy: Array
    size: Array


def top_label(probabilities: Array, labels: Array) -> tuple[Array, Array]:
    """Confidence in the most probable class (n,), and whether that class is right, bool (n,)."""
    return probabilities.max(1), probabilities.argmax(1) == labels


def width_bins(confidence: Array) -> Array:
    """Which of the 15 bins [i/15, (i+1)/15) a confidence lies in, (n,).

    Exactly 1.0 has a bin of its own, number 15, as in torchmetrics (binary and multiclass
    calibration error): saturated posteriors would otherwise hide the bin below.
    """
    return np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="right") - 1


def reliability(probabilities: Array, labels: Array) -> Bins:
    """The 16 bins of ``width_bins``, empty ones with NaN."""
    confidence, right = top_label(probabilities, labels)
    index = width_bins(confidence)
    count = np.bincount(index, minlength=BINS + 1)
    with np.errstate(invalid="ignore"):
        return Bins(
            np.bincount(index, confidence, BINS + 1) / count,
            np.bincount(index, right, BINS + 1) / count,
            count,
        )


def ece(probabilities: Array, labels: Array, versions: int = 1) -> Resampled:
    """Expected calibration error, top label, 15 equal-width bins (Guo et al. 2017); lower is better.

    sum over bins of |sum of (confidence - right)| / n, in [0, 1]; see ``width_bins`` for 1.0.
    Reference: torchmetrics, multiclass_calibration_error.
    """
    confidence, right = top_label(probabilities, labels)
    gaps = np.zeros((len(labels), BINS + 1))
    gaps[np.arange(len(labels)), width_bins(confidence)] = confidence - right
    gaps = gaps.reshape(-1, versions, BINS + 1).sum(1)
    return Resampled(
        float(np.abs(gaps.sum(0)).sum() / len(labels)), np.abs(resampled_sums(gaps)).sum(1) / len(labels)
    )


def adaptive_ece(probabilities: Array, labels: Array, versions: int = 1) -> Resampled:
    """Adaptive calibration error, top label, 15 bins of equal mass (Nguyen and O'Connor 2015).

    Samples are sorted by confidence (ties in the order of their ids) and cut at round(i n / 15);
    then as ``ece``. Every bootstrap resample is cut anew. Lower is better, in [0, 1].
    """
    n = len(labels)
    confidence, right = top_label(probabilities, labels)
    order = np.argsort(confidence, kind="stable")
    gaps = (confidence - right)[order]
    edges = np.unique(np.round(np.linspace(0, n, BINS + 1)).astype(int))

    def error(counts: Array) -> float:
        """The error of a resample with each sample ``counts`` times: gaps up to each edge, then by bin."""
        seen, sums = counts.cumsum(), (counts * gaps).cumsum()
        last = np.searchsorted(seen, edges)
        upto = sums[last] - (seen[last] - edges) * gaps[last]
        return float(np.abs(np.diff(upto)).sum() / n)

    picture = order // versions
    drawn = [error(counts[picture].astype(np.int64)) for counts in resamples(n // versions)]
    return Resampled(error(np.ones(n, dtype=np.int64)), np.array(drawn))


def classwise_ece(probabilities: Array, labels: Array, versions: int = 1) -> Resampled:
    """Classwise calibration error (Kull et al. 2019): the mean over classes c of the error of p_c as a
    probability of "the label is c", 15 equal-width bins as in ``ece``; in [0, 1], lower is better.

    Reference: torchmetrics, binary_calibration_error, class by class.
    """
    size = labels.size * probabilities.shape[1]
    value, replicates = _class_bins(probabilities, labels, versions)
    return Resampled(
        float(np.abs(value.said - value.seen).sum() / size),
        np.abs(replicates.said - replicates.seen).sum((1, 2)) / size,
    )


def brier_parts(probabilities: Array, labels: Array, versions: int = 1) -> dict[str, Resampled]:
    """Brier's score taken apart: reliability - resolution + uncertainty (Murphy 1973), summed over classes.

    In each class's bins of ``width_bins``, n_b samples with mean probability p_b, a share o_b of which
    has the label: reliability = sum n_b (p_b - o_b)^2 / n, lower is better; uncertainty = o (1 - o) of
    the class's share o, the data's own. Murphy's resolution, sum n_b (o_b - o)^2 / n, makes the sum
    exact for forecasts that are equal within a bin. For others it is what the sum leaves, the
    generalised resolution of Stephenson et al. 2008 (Weather and Forecasting 23): higher is better.
    """
    score = brier(probabilities, labels, versions)

    def parts(bins: _ClassBins, score: float | Array) -> tuple[Array, Array, Array]:
        reliability = ((bins.said - bins.seen) ** 2 / np.maximum(bins.size, 1)).sum((-1, -2)) / labels.size
        share = bins.seen.sum(-1) / labels.size
        uncertainty = (share * (1 - share)).sum(-1)
        return reliability, reliability + uncertainty - score, uncertainty

    value, replicates = _class_bins(probabilities, labels, versions)
    names = ("brier_reliability", "brier_resolution", "brier_uncertainty")
    both = zip(names, parts(value, score.value), parts(replicates, score.replicates), strict=True)
    return {name: Resampled(float(v), r) for name, v, r in both}


class _ClassBins(NamedTuple):
    """By class and bin, (..., classes, 16): how many samples, the sum of p_c, how many have the label c."""

    size: Array
    said: Array
    seen: Array


def _class_bins(probabilities: Array, labels: Array, versions: int) -> tuple[_ClassBins, _ClassBins]:
    """The bins of all samples, and those of each bootstrap resample, (1000, classes, 16)."""
    from scipy.sparse import csr_array

    rows, classes = probabilities.shape
    target = np.zeros_like(probabilities)
    target[np.arange(rows), labels] = 1
    column = width_bins(probabilities) + (BINS + 1) * np.arange(classes)
    place = np.repeat(np.arange(rows) // versions, classes), column.ravel()
    shape = (rows // versions, (BINS + 1) * classes)
    values, replicates = [], []
    for content in (np.ones_like(probabilities), probabilities, target):
        table = csr_array((content.ravel(), place), shape=shape)
        blocks = np.array_split(resamples(shape[0]), 20)
        drawn = np.concatenate([(table.T @ block.T.astype(np.float64)).T for block in blocks])
        values.append(np.asarray(table.sum(0)).reshape(classes, BINS + 1))
        replicates.append(drawn.reshape(len(drawn), classes, BINS + 1))
    return _ClassBins(*values), _ClassBins(*replicates)


def nll(log_probabilities: Array, labels: Array, versions: int = 1) -> Resampled:
    """Mean of -log p(label), in nats; lower is better."""
    return mean(-np.take_along_axis(log_probabilities, labels[:, None], 1)[:, 0], versions)


def brier(probabilities: Array, labels: Array, versions: int = 1) -> Resampled:
    """Brier's score (1950): mean over samples of sum_c (p_c - [c = label])^2, in [0, 2]; lower is better."""
    target = np.zeros_like(probabilities)
    target[np.arange(len(labels)), labels] = 1
    return mean(((probabilities - target) ** 2).sum(1), versions)


def mean(values: Array, versions: int = 1) -> Resampled:
    """The mean of values (n,)."""
    values = values.reshape(-1, versions).mean(1)
    return Resampled(float(values.mean()), resampled_sums(values[:, None])[:, 0] / len(values))


LOG_T = (-8.0, 8.0)  # the range of log T, with T in units of the logits' typical lead


class Temperature(NamedTuple):
    """A fitted temperature and its 95 % interval."""

    value: float
    low: float
    high: float


def fit_temperature(logits: Array, labels: Array) -> Temperature:
    """The T > 0 that minimises the NLL of softmax(logits / T) (Guo et al. 2017), sought from e^-8 to e^8
    times the typical lead of the largest logit: the median of the nonzero gaps to the second largest, which
    neither a class far below the others nor a few samples with large logits change.

    The NLL is convex in 1/T, so a bounded search for log T finds the one minimum. Where ``separable`` there
    is none (ever smaller T is ever better), and T = 1; where ``uninformative``, ever larger T is ever better,
    and T is the largest that is sought. The interval is Wald's on log T with the sandwich variance:
    sum g_i^2 / (sum h_i)^2 for b = 1/T, with g_i and h_i the first and second derivative of a sample's NLL
    in b; it ends where T is not sought.
    """
    if separable(logits, labels):
        return Temperature(1.0, 1.0, 1.0)
    from scipy.optimize import minimize_scalar

    ordered = np.sort(logits, 1)
    gaps = ordered[:, -1] - ordered[:, -2]
    lead = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else float(np.ptp(logits, 1).max())
    unit = logits / lead

    def loss(log_t: float) -> float:
        log_p = log_softmax(unit / np.exp(log_t))
        return float(-np.take_along_axis(log_p, labels[:, None], 1).mean())

    found = minimize_scalar(loss, bounds=LOG_T, method="bounded", options={"xatol": 1e-8})
    t = float(np.exp(found.x))
    p = np.exp(log_softmax(unit / t))
    mean_logit = (p * unit).sum(1)
    gradient = mean_logit - np.take_along_axis(unit, labels[:, None], 1)[:, 0]
    curvature = (p * (unit - mean_logit[:, None]) ** 2).sum()
    half = Z95 * float(np.sqrt((gradient**2).sum()) / curvature) * t
    low, high = np.exp(np.clip([found.x - half, found.x + half], *LOG_T))
    return Temperature(t * lead, float(low) * lead, float(high) * lead)


def separable(logits: Array, labels: Array) -> bool:
    """Whether every label has the largest logit of its row: then the NLL never rises as T falls."""
    return bool((np.take_along_axis(logits, labels[:, None], 1)[:, 0] == logits.max(1)).all())


def uninformative(logits: Array, labels: Array) -> bool:
    """Whether labels have logits no larger than other classes have on average: then the NLL falls with
    T without end (its derivative in 1/T, which rises, is not below 0 at 0)."""
    return bool(np.take_along_axis(logits, labels[:, None], 1).mean() <= logits.mean())
