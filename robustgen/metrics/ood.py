"""OOD detection: how well a score separates the data from foreign pictures.

A score is larger for pictures that look like the data ("in"). Two conventions of the error rate are
in use and both are given; which class is positive is said at each function.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robustgen.metrics.calibration import Resampled
from robustgen.metrics.intervals import RESAMPLES, Interval, resamples, wilson
from robustgen.metrics.rows import Rows, log_odds
from robustgen.metrics.verdicts import share_interval

Array = np.ndarray
BLOCK = 4_000_000  # numbers held at a time while resampling


def scores(rows: Rows, calibration: Rows | None = None) -> dict[str, Array]:
    """The scores that can be read from rows, each (n,), larger for "in".

    msp: the largest softmax probability (Hendrycks and Gimpel 2017), as its log-odds, which have the same
    order and separate values that round to 1; entropy: the softmax's negative
    entropy in nats; energy: logsumexp of the logits, the negative energy of Liu et al. (2020);
    max_logit (Hendrycks et al. 2022). Where every row has the model's log p(x): log_prob; typicality,
    -|log p(x) - the mean log p of the ``calibration`` split| (Nalisnick et al. 2019, for one picture);
    complexity_corrected, log p(x) + ln 2 * complexity, in nats (Serra et al. 2020, negated). And what
    was stored beside the logits, where every row has a number: gradient, complexity, chroma, detectors.
    """
    top = rows.logits.max(1)
    log_p = rows.log_probabilities
    found = {
        "msp": log_odds(rows.logits),
        "entropy": (np.exp(log_p) * log_p).sum(1),
        "energy": top + np.log(np.exp(rows.logits - top[:, None]).sum(1)),
        "max_logit": top,
    }
    if np.isfinite(rows.log_prob).all():
        found["log_prob"] = rows.log_prob
        if calibration is not None and np.isfinite(calibration.log_prob).all():
            found["typicality"] = -np.abs(rows.log_prob - calibration.log_prob.mean())
        if "complexity" in rows.scores:
            found["complexity_corrected"] = rows.log_prob + np.log(2) * rows.scores["complexity"]
    return found | {name: values for name, values in rows.scores.items() if np.isfinite(values).all()}


class Roc(NamedTuple):
    """A ROC curve: share of foreign and of own pictures whose score is at least each threshold."""

    foreign: Array
    own: Array


class Detection(NamedTuple):
    """Seven metrics of separating own from foreign pictures, each (...,), in [0, 1].

    auroc: P(own scores higher than foreign), ties count half; the same whichever class is positive.
    Reference: scikit-learn, roc_auc_score.
    aupr_in, aupr_out: area under precision against recall with own (out: foreign) pictures positive,
    by trapezoids over the observed thresholds, as OpenOOD does it. Reference: scikit-learn, auc of
    precision_recall_curve.
    average_precision_in, average_precision_out: the same area by steps, sum over thresholds of the
    gain in recall times the precision. Reference: scikit-learn, average_precision_score.
    fpr95_at_id_tpr: at the highest threshold that accepts >= 95 % of own pictures, the share of
    foreign ones accepted (own positive; the convention of MSP, energy and JEM).
    fpr95_at_ood_tpr: at the lowest threshold that flags >= 95 % of foreign pictures, the share of own
    ones flagged (foreign positive; OpenOOD's convention). Reference of both: scikit-learn, roc_curve.
    Higher is better for all but the last two.
    """

    auroc: Array
    aupr_in: Array
    aupr_out: Array
    average_precision_in: Array
    average_precision_out: Array
    fpr95_at_id_tpr: Array
    fpr95_at_ood_tpr: Array


AREAS_UNDER_PRECISION = ("aupr_in", "aupr_out", "average_precision_in", "average_precision_out")


def roc(own: Array, foreign: Array) -> Roc:
    """The ROC curve of scores own (n,) and foreign (m,), own pictures positive; it begins at (0, 0)."""
    tp, fp = _cumulative(_ones(own), _ones(foreign), *_thresholds(own, foreign))
    return Roc(_from_zero(fp)[0] / len(foreign), _from_zero(tp)[0] / len(own))


def detection(own: Array, foreign: Array) -> Detection:
    """The metrics of scores own (n,) and foreign (m,), each a float array of shape ()."""
    found = _measures(*_cumulative(_ones(own), _ones(foreign), *_thresholds(own, foreign)))
    return Detection(*(value[0] for value in found))


def resampled(own: Array, foreign: Array) -> dict[str, Resampled]:
    """Each metric with its bootstrap replicates; NaN where there are no own or no foreign pictures."""
    if not len(own) or not len(foreign):
        return dict.fromkeys(Detection._fields, Resampled(np.nan, np.full(RESAMPLES, np.nan)))
    values, replicates = detection(own, foreign), detection_resampled(own, foreign)
    return {
        metric: Resampled(float(getattr(values, metric)), getattr(replicates, metric))
        for metric in Detection._fields
    }


def detection_resampled(own: Array, foreign: Array) -> Detection:
    """The metrics over 1000 bootstrap resamples, own and foreign pictures drawn independently: (1000,)."""
    thresholds = _thresholds(own, foreign)
    draws_own, draws_foreign = resamples(len(own)), resamples(len(foreign), stream=1)
    blocks = max(1, RESAMPLES * (len(own) + len(foreign)) // BLOCK)
    parts = np.array_split(np.arange(RESAMPLES), blocks)
    found = [_measures(*_cumulative(draws_own[b], draws_foreign[b], *thresholds)) for b in parts]
    return Detection(*(np.concatenate(values) for values in zip(*found, strict=True)))


def least_intervals(own: Array, foreign: Array) -> dict[str, Interval]:
    """The interval that each measure's must contain. Where the two sides do not overlap, all resamples are
    equal, and the bootstrap interval has no width.

    Of a share of accepted or flagged pictures Wilson's interval, its threshold taken as given. Of auroc, the
    mean over the pictures of a side of the share of the other side that lies beyond each: that mean's
    (``share_interval``), for both sides. Of an area under precision what one picture more in the worst place
    would make of it, a foreign one above all or an own one below all.
    """
    values = detection(own, foreign)
    sides = [share_interval(_beyond(own, foreign)), share_interval(_beyond(-foreign, -own))]
    worse = detection(own, np.append(foreign, np.inf)), detection(np.append(own, -np.inf), foreign)
    areas = {
        metric: [float(getattr(v, metric)) for v in (values, *worse)] for metric in AREAS_UNDER_PRECISION
    }
    return {
        "auroc": Interval(min(side.low for side in sides), max(side.high for side in sides)),
        "fpr95_at_id_tpr": wilson(round(float(values.fpr95_at_id_tpr) * len(foreign)), len(foreign)),
        "fpr95_at_ood_tpr": wilson(round(float(values.fpr95_at_ood_tpr) * len(own)), len(own)),
        **{metric: Interval(min(several), several[0]) for metric, several in areas.items()},
    }


def _beyond(scores: Array, others: Array) -> Array:
    """The share of the others below each score, (n,), ties counted half."""
    ordered = np.sort(others)
    below, upto = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return (below + upto) / (2 * len(others))


def _ones(scores: Array) -> Array:
    return np.ones((1, len(scores)), dtype=np.uint16)


def _thresholds(own: Array, foreign: Array) -> tuple[Array, Array]:
    """The order of all scores from the largest, and the last place of each group of equal ones."""
    pooled = np.concatenate([own, foreign])
    order = np.argsort(-pooled, kind="stable")
    falling = pooled[order]
    return order, np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(pooled) - 1)


def _cumulative(own: Array, foreign: Array, order: Array, ends: Array) -> tuple[Array, Array]:
    """Own and foreign pictures at or above each threshold, (b, thresholds), from weights (b, n), (b, m)."""
    none_own, none_foreign = np.zeros_like(own), np.zeros_like(foreign)
    tp = np.concatenate([own, none_foreign], 1)[:, order].cumsum(1, dtype=np.float64)[:, ends]
    fp = np.concatenate([none_own, foreign], 1)[:, order].cumsum(1, dtype=np.float64)[:, ends]
    return tp, fp


def _from_zero(counts: Array) -> Array:
    return np.concatenate([np.zeros((len(counts), 1)), counts], 1)


def _measures(tp: Array, fp: Array) -> Detection:
    """The metrics from cumulative counts of own (tp) and foreign pictures (fp), each (b, thresholds)."""
    # the same thresholds walked from the lowest score, foreign pictures positive
    tp_out = (fp[:, -1:] - _from_zero(fp)[:, :-1])[:, ::-1]
    fp_out = (tp[:, -1:] - _from_zero(tp)[:, :-1])[:, ::-1]
    return Detection(
        _trapezoids(_from_zero(fp) / fp[:, -1:], _from_zero(tp) / tp[:, -1:]),
        _aupr(tp, fp),
        _aupr(tp_out, fp_out),
        _average_precision(tp, fp),
        _average_precision(tp_out, fp_out),
        _fpr95(tp, fp),
        _fpr95(tp_out, fp_out),
    )


def _trapezoids(x: Array, y: Array) -> Array:
    return (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2).sum(1)


def _precision(tp: Array, fp: Array) -> Array:
    return np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), 1.0)


def _average_precision(tp: Array, fp: Array) -> Array:
    return (np.diff(_from_zero(tp) / tp[:, -1:], axis=1) * _precision(tp, fp)).sum(1)


def _aupr(tp: Array, fp: Array) -> Array:
    precision = _precision(tp, fp)
    precision = np.concatenate([np.ones((len(tp), 1)), precision], 1)  # at recall 0, as scikit-learn
    return _trapezoids(_from_zero(tp) / tp[:, -1:], precision)


def _fpr95(tp: Array, fp: Array) -> Array:
    first = np.argmax(tp / tp[:, -1:] >= 0.95, axis=1)
    return np.take_along_axis(fp, first[:, None], 1)[:, 0] / fp[:, -1]
