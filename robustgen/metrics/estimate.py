"""Estimate: a metric with its 95 % interval, and what a paired test of two models needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from robustgen.metrics import calibration, verdicts
from robustgen.metrics.calibration import BIASED, Resampled
from robustgen.metrics.intervals import Interval, basic_interval, percentile_interval, wilson
from robustgen.metrics.rows import Rows, Run
from robustgen.types import Metric

Array = np.ndarray
Statistic = Callable[[Array], Resampled]
Chance = Callable[[Array], float]
Rule = Callable[[float, Array], Interval]


@dataclass(frozen=True)
class Estimate:
    """A metric with the data behind it.

    ``ids``: the samples it was computed from, foreign ones as -1 - id; ``right`` bool (n,): the verdicts, if
    the metric is a rate; ``resampled`` (1000,): its values over bootstrap resamples of all samples, if
    already computed; ``again``: computes the statistic of the samples at some indices of ``ids``;
    ``chance``: how much of a calibration error of these samples chance alone may have made (consistency.py).
    """

    metric: Metric
    ids: Array
    right: Array | None = None
    resampled: Array | None = None
    again: Statistic | None = None
    chance: Chance | None = None

    @cached_property
    def replicates(self) -> Array | None:
        """The values over bootstrap resamples (1000,); models on the same samples share the resamples."""
        if self.resampled is None and self.again is not None:
            return self.again(np.arange(len(self.ids))).replicates
        return self.resampled

    def at(self, places: Array) -> Resampled:
        """The statistic of the samples at these indices of ``ids`` only, which are in ascending order."""
        assert self.replicates is not None
        if len(places) == len(self.ids) or self.again is None:
            return Resampled(self.metric.value, self.replicates)
        return self.again(places)


def rate(run: Run, evaluation: str, variant: str, metric: str, ids: Array, right: Array) -> Estimate:
    """The share of correct verdicts with Wilson's interval."""
    successes, n = int(right.sum()), len(right)
    ends = wilson(successes, n)
    return Estimate(
        Metric(run.model, evaluation, variant, metric, successes / n, *ends, n, "", True), ids, right=right,
        again=partial(mean_of, right.astype(np.float64)),
    )  # fmt: skip


def share(run: Run, evaluation: str, variant: str, metric: str, ids: Array, values: Array) -> Estimate:
    """The mean of values in [0, 1], one for each sample, with ``verdicts.share_interval``."""
    ends = verdicts.share_interval(values)
    content = Metric(run.model, evaluation, variant, metric, float(values.mean()), *ends, len(ids), "", True)
    return Estimate(content, ids, again=partial(mean_of, values))


def accuracy(run: Run, evaluation: str, metric: str, rows: Rows) -> Iterator[Estimate]:
    """Accuracy; for a stochastic model the mean over draws, then by majority and by worst of K."""
    if not rows.stochastic:
        yield rate(run, evaluation, "", metric, rows.ids, rows.correct)
        return
    yield share(run, evaluation, "", metric, rows.ids, rows.share)
    yield rate(run, evaluation, verdicts.MAJORITY, metric, rows.ids, rows.correct)
    never_wrong = verdicts.worst_of(verdicts.WORST_OF, rows.draws_correct, rows.draws)
    yield share(run, evaluation, verdicts.WORST, metric, rows.ids, never_wrong)


def resampled(
    run: Run, evaluation: str, variant: str, metric: str, statistic: Statistic, ids: Array,
    *, found: Resampled | None = None, rule: Rule | None = None, least: Interval | None = None,
    chance: Chance | None = None, unit: str = "", higher: bool | None,
) -> Estimate:  # fmt: skip
    """``statistic`` of all samples with its bootstrap interval.

    ``found``: its value and replicates, if already computed; ``rule``: makes an interval of these, by default
    the percentile interval, or the basic one for a BIASED metric; ``least``: an interval that the result must
    contain, for statistics whose resamples vary too little; ``chance``: as in ``Estimate``, how far down the
    interval must reach.
    """
    everyone = np.arange(len(ids))
    found = found or statistic(everyone)
    rule = rule or (basic_interval if metric in BIASED else percentile_interval)
    low, high = rule(found.value, found.replicates)
    if least is not None:
        low, high = min(low, least.low), max(high, least.high)
    if chance is not None:
        low = min(low, found.value - chance(everyone))
    if rule is basic_interval:
        low, high = max(min(0.0, found.value), low), min(max(BIASED.get(metric, 1.0), found.value), high)
    content = Metric(run.model, evaluation, variant, metric, found.value, low, high, len(ids), unit, higher)
    return Estimate(content, ids, again=statistic, resampled=found.replicates, chance=chance)


def mean_of(values: Array, places: Array) -> Resampled:
    """The mean of the values at some indices."""
    return calibration.mean(values[places])
