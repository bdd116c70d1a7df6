"""OOD detection of a run: on foreign pictures as they are, and after an attack on a score."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from robustgen.metrics import ood
from robustgen.metrics.calibration import Resampled
from robustgen.metrics.estimate import Estimate, resampled
from robustgen.metrics.intervals import area_interval
from robustgen.metrics.rows import Rows, Run

Array = np.ndarray
LEAST = 20
"""The fewest pictures on each side: 95 % of fewer than 20 is all of them."""


def ood_estimates(run: Run) -> Iterator[Estimate]:
    """The clean pictures against each foreign set by every score that both have, then against attacked ones
    by the score that was attacked."""
    clean = run.first("clean")
    if clean is None:
        return
    fitted = run.first("calibration")
    own = ood.scores(clean, fitted)
    for evaluation, rows in run.of_kind("ood"):
        for score, values in ood.scores(rows, fitted).items():
            if score in own:
                yield from _detection(run, evaluation.name, score, (clean, own[score]), (rows, values))
    yield from _attacked(run, clean)


def _attacked(run: Run, clean: Rows) -> Iterator[Estimate]:
    """The metrics of an attacked score: with foreign pictures attacked to look in-distribution (variant
    SCORE-foreign), own pictures attacked to look foreign (SCORE-own), or both (SCORE-both). The evaluation is
    that of the attacked foreign pictures.
    """
    for evaluation, rows in run.of_kind("fixed"):
        detail = evaluation.detail
        score = detail["objective"]
        plain = run.evaluations.get(detail["of"])
        if detail["of"] == "clean" or plain is None or plain.rows is None:
            continue
        alike = {key: detail[key] for key in ("objective", "norm", "eps", "steps")} | {"of": "clean"}
        own = next((r for e, r in run.of_kind("fixed") if alike.items() <= e.detail.items()), None)
        pairs = {"foreign": (clean, rows), "own": (own, plain.rows), "both": (own, rows)}
        for side, (ours, theirs) in pairs.items():
            if ours is None:
                continue
            values, others = ood.scores(ours).get(score), ood.scores(theirs).get(score)
            if values is not None and others is not None:
                both = ((ours, values), (theirs, others))
                yield from _detection(run, evaluation.name, f"{score}-{side}", *both)


def _detection(
    run: Run, evaluation: str, variant: str, own: tuple[Rows, Array], foreign: tuple[Rows, Array]
) -> Iterator[Estimate]:
    """Every metric of own and foreign pictures, each as (rows, scores), if both are at least LEAST."""
    if min(len(own[1]), len(foreign[1])) < LEAST:
        return
    ids = np.concatenate([own[0].ids, -1 - foreign[0].ids])
    found, least = ood.resampled(own[1], foreign[1]), ood.least_intervals(own[1], foreign[1])
    for metric in ood.Detection._fields:
        again = partial(_at, own[1], foreign[1], metric)
        yield resampled(
            run, evaluation, variant, metric, again, ids, found=found[metric],
            rule=partial(area_interval, n=len(ids)) if metric in ood.AREAS_UNDER_PRECISION else None,
            least=least[metric], higher=not metric.startswith("fpr95"),
        )  # fmt: skip


def _at(own: Array, foreign: Array, metric: str, places: Array) -> Resampled:
    chosen, others = places[places < len(own)], places[places >= len(own)] - len(own)
    return ood.resampled(own[chosen], foreign[others])[metric]
