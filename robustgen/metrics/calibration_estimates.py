"""The calibration of a run on clean, corrupted and attacked pictures, without temperature and with the one
that is fitted to the calibration split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from robustgen.metrics import calibration, selective
from robustgen.metrics.calibration import Resampled
from robustgen.metrics.consistency import by_chance
from robustgen.metrics.corruption_estimates import families
from robustgen.metrics.estimate import Estimate, Statistic, resampled
from robustgen.metrics.rows import Rows, Run, aligned, log_odds, log_softmax
from robustgen.types import Metric

Array = np.ndarray
HIGHER = {"brier_reliability": False, "brier_resolution": True, "brier_uncertainty": None}
"""Uncertainty is a property of the data: neither direction is better."""


def calibration_estimates(run: Run) -> Iterator[Estimate]:
    """ECE and its variants, NLL, Brier's score with its parts, AURC and E-AURC.

    For clean pictures and for those of a fixed attack on the label the variants are "" and ``temperature``;
    for all corrupted pictures of a family together ``all`` and ``all-temperature``.
    """
    if run.first("clean") is None:
        return
    temperature, fitted = None, run.first("calibration")
    if fitted is not None:
        temperature = calibration.fit_temperature(fitted.logits, fitted.labels)
        yield Estimate(
            Metric(run.model, "calibration", "", "temperature", *temperature, len(fitted), "", None),
            fitted.ids,
        )
    scales = {"": 1.0} | ({"temperature": temperature.value} if temperature else {})
    for evaluation, rows in run.of_kind("clean", "fixed"):
        if evaluation.detail.get("objective", "label") == "label":
            for variant, scale in scales.items():
                table = _Table(rows.logits / scale, rows.labels, rows.ids)
                yield from _measures(run, evaluation.name, variant, table)
    for name, family in families(run).items():
        cells = aligned(*(rows for _, rows in family))
        for variant, scale in scales.items() if len(cells[0]) else ():
            table = _pooled(cells, scale)
            yield from _measures(run, name, "-".join(filter(None, ("all", variant))), table)


class _Table:
    """Log-probabilities (n * versions, classes) and labels, the versions of each picture adjacent."""

    def __init__(self, logits: Array, labels: Array, ids: Array, versions: int = 1) -> None:
        self.ids = ids
        self.versions = versions
        self.log_p = log_softmax(logits)
        self.p = np.exp(self.log_p)
        self.labels = labels
        self.sure, self.right = log_odds(logits), logits.argmax(1) == labels

    def rows(self, places: Array) -> Array:
        """The rows of the pictures at these indices."""
        return (places[:, None] * self.versions + np.arange(self.versions)).ravel()


def _pooled(cells: list[Rows], scale: float) -> _Table:
    """The pictures that all cells have; a cell is a version."""
    logits = np.stack([rows.logits for rows in cells], 1)
    labels = np.stack([rows.labels for rows in cells], 1)
    return _Table(logits.reshape(-1, logits.shape[2]) / scale, labels.ravel(), cells[0].ids, len(cells))


def _measures(run: Run, name: str, variant: str, table: _Table) -> Iterator[Estimate]:
    t, v = table, table.versions
    statistics: dict[str, Statistic] = {
        "ece": lambda k: calibration.ece(t.p[t.rows(k)], t.labels[t.rows(k)], v),
        "adaptive_ece": lambda k: calibration.adaptive_ece(t.p[t.rows(k)], t.labels[t.rows(k)], v),
        "classwise_ece": lambda k: calibration.classwise_ece(t.p[t.rows(k)], t.labels[t.rows(k)], v),
        "nll": lambda k: calibration.nll(t.log_p[t.rows(k)], t.labels[t.rows(k)], v),
        "brier": lambda k: calibration.brier(t.p[t.rows(k)], t.labels[t.rows(k)], v),
        "aurc": lambda k: selective.aurc(t.sure[t.rows(k)], t.right[t.rows(k)], v),
        "e_aurc": lambda k: selective.e_aurc(t.sure[t.rows(k)], t.right[t.rows(k)], v),
    }
    all_ = t.rows(np.arange(len(t.ids)))
    known = dict(zip(("aurc", "e_aurc"), selective.both(t.sure[all_], t.right[all_], v), strict=True))
    known |= {
        metric: statistics[metric](np.arange(len(t.ids))) for metric in statistics.keys() - known.keys()
    }
    known |= _brier_parts(t, np.arange(len(t.ids)))
    statistics |= {metric: partial(_brier_part, t, metric) for metric in HIGHER}
    of_all = by_chance(t.p, t.labels, v)
    for metric, statistic in statistics.items():
        yield resampled(
            run, name, variant, metric, statistic, t.ids, found=known[metric],
            chance=partial(_chance, t, of_all, metric) if metric in of_all else None,
            unit="nats" if metric == "nll" else "", higher=HIGHER.get(metric, False),
        )  # fmt: skip


def _chance(table: _Table, of_all: dict[str, float], metric: str, places: Array) -> float:
    """``by_chance`` of some pictures; ``of_all`` of them it is known."""
    if len(places) == len(table.ids):
        return of_all[metric]
    rows = table.rows(places)
    return by_chance(table.p[rows], table.labels[rows], table.versions)[metric]


def _brier_parts(table: _Table, places: Array) -> dict[str, Resampled]:
    rows = table.rows(places)
    return calibration.brier_parts(table.p[rows], table.labels[rows], table.versions)


def _brier_part(table: _Table, metric: str, places: Array) -> Resampled:
    return _brier_parts(table, places)[metric]
