"""What a number of a report is: its value, its 95 % interval, and what a paired test needs of it."""

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
    """A metric and what lies behind it.

    ``ids``: the samples that it was read from, foreign ones as -1 - id; ``right`` bool (n,) for a
    rate; ``resampled`` (1000,), its values over bootstrap resamples of all samples, where they are known
    already; ``again``, the statistic of the samples at some of the places in ``ids``; ``chance``, how much of
    a calibration error of these samples may be there by chance alone (consistency.py).
    """

    metric: Metric
    ids: Array
    right: Array | None = None
    resampled: Array | None = None
    again: Statistic | None = None
    chance: Chance | None = None

    @cached_property
    def replicates(self) -> Array | None:
        """Values over bootstrap resamples (1000,), which models on the same samples share."""
        if self.resampled is None and self.again is not None:
            return self.again(np.arange(len(self.ids))).replicates
        return self.resampled

    def at(self, places: Array) -> Resampled:
        """The same statistic of the samples at these places of ``ids`` only, in rising order."""
        assert self.replicates is not None
        if len(places) == len(self.ids) or self.again is None:
            return Resampled(self.metric.value, self.replicates)
        return self.again(places)


def rate(run: Run, evaluation: str, variant: str, metric: str, ids: Array, right: Array) -> Estimate:
    """The share of right verdicts with Wilson's interval."""
    successes, n = int(right.sum()), len(right)
    ends = wilson(successes, n)
    return Estimate(
        Metric(run.model, evaluation, variant, metric, successes / n, *ends, n, "", True), ids, right=right,
        again=partial(mean_of, right.astype(np.float64)),
    )  # fmt: skip


def share(run: Run, evaluation: str, variant: str, metric: str, ids: Array, values: Array) -> Estimate:
    """The mean of shares in [0, 1]."""
    ends = verdicts.share_interval(values)
    content = Metric(run.model, evaluation, variant, metric, float(values.mean()), *ends, len(ids), "", True)
    return Estimate(content, ids, again=partial(mean_of, values))


def accuracy(run: Run, evaluation: str, metric: str, rows: Rows) -> Iterator[Estimate]:
    """The share right: of a stochastic model the mean, then by majority and worst of K."""
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
    """``statistic`` of all samples, which is ``found`` where it is known already.

    ``rule``: how its interval is read from resamples, by default by percentiles, of a BIASED metric the basic
    one; ``least``: what the interval has to hold, where resamples by themselves would say too little;
    ``chance``: as of ``Estimate``: how far down it has to reach.
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
    """The mean of the values at some places."""
    return calibration.mean(values[places])
