"""Is one model better than another, on the same samples? Paired tests, corrected over all of a report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from robustgen.metrics.calibration import BIASED
from robustgen.metrics.estimate import Estimate
from robustgen.metrics.intervals import (
    basic_interval,
    bootstrap_p,
    holm,
    mcnemar,
    newcombe,
    percentile_interval,
)

LEAST = 10
"""Samples that a bootstrap test needs: of fewer, resamples say too little of their spread, of one nothing."""


class Key(NamedTuple):
    """What two models are compared in."""

    evaluation: str
    variant: str
    metric: str


@dataclass(frozen=True)
class Comparison:
    """A paired test of two models on the ``n`` samples that both have.

    ``difference`` is a minus b with its 95 % interval: Newcombe's where McNemar's test is made, which also
    gives how many samples only one of the two gets right, else the bootstrap's. ``p_holm`` is corrected
    over all tests of a report. A difference of two calibration errors that chance alone can explain, since
    it raises both and that of the vaguer model more, has p = 1 and an interval that holds 0.
    """

    evaluation: str
    variant: str
    metric: str
    model_a: str
    model_b: str
    difference: float
    ci_low: float
    ci_high: float
    n: int
    test: Literal["mcnemar", "bootstrap"]
    only_a: int | None
    only_b: int | None
    p: float
    p_holm: float = 1.0


def compare(estimates: Iterable[Estimate], compared: Iterable[Key]) -> list[Comparison]:
    """Test every pair of models in everything that is ``compared``, with Holm's correction over all."""
    by_key: dict[Key, list[Estimate]] = defaultdict(list)
    for estimate in estimates:
        metric = estimate.metric
        by_key[Key(metric.evaluation, metric.variant, metric.metric)].append(estimate)
    found = [test for key in dict.fromkeys(compared) for test in _tests(key, by_key[key])]
    corrected = holm([test.p for test in found])
    return [replace(test, p_holm=p) for test, p in zip(found, corrected, strict=True)]


def _tests(key: Key, several: list[Estimate]) -> Iterator[Comparison]:
    for a, b in combinations(several, 2):
        test = _mcnemar(key, a, b) if a.right is not None and b.right is not None else _bootstrap(key, a, b)
        if test is not None:
            yield test


def _mcnemar(key: Key, a: Estimate, b: Estimate) -> Comparison | None:
    assert a.right is not None
    assert b.right is not None
    ids, in_a, in_b = np.intersect1d(a.ids, b.ids, return_indices=True)
    if not len(ids):
        return None
    right_a, right_b = a.right[in_a], b.right[in_b]
    both, only_a, only_b, neither = (
        int(which.sum())
        for which in (right_a & right_b, right_a & ~right_b, right_b & ~right_a, ~(right_a | right_b))
    )
    low, high = newcombe(both, only_a, only_b, neither)
    return Comparison(
        *key, a.metric.model, b.metric.model, (only_a - only_b) / len(ids), low, high, len(ids),
        "mcnemar", only_a, only_b, mcnemar(only_a, only_b),
    )  # fmt: skip


def _bootstrap(key: Key, a: Estimate, b: Estimate) -> Comparison | None:
    """On their common samples models share their resamples, so the replicates' difference is paired."""
    ids, in_a, in_b = np.intersect1d(a.ids, b.ids, return_indices=True)
    if a.replicates is None or b.replicates is None or len(ids) < LEAST:
        return None
    in_a, in_b = np.sort(in_a), np.sort(in_b)
    ours, theirs = a.at(in_a), b.at(in_b)
    gap, replicates = ours.value - theirs.value, ours.replicates - theirs.replicates
    if not np.isfinite(replicates).all():
        return None
    biased = key.metric in BIASED
    low, high = (basic_interval if biased else percentile_interval)(gap, replicates)
    p = bootstrap_p(gap, replicates, _smaller_side(ids))
    if a.chance is not None and b.chance is not None:
        least, most = gap - a.chance(in_a), gap + b.chance(in_b)
        low, high = min(low, least), max(high, most)
        p = 1.0 if least <= 0 <= most else p
    return Comparison(
        *key, a.metric.model, b.metric.model, gap, low, high, len(ids), "bootstrap", None, None, p
    )


def _smaller_side(ids: np.ndarray) -> int:
    """How many samples a test rests on: where some are foreign (below 0), as many as the fewer of the two."""
    foreign = int((ids < 0).sum())
    return min(foreign, len(ids) - foreign) or len(ids)
