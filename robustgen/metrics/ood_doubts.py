"""Doubts about foreign pictures: sets too small or not independent, detectors that a model cannot have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robustgen.metrics.ood_estimates import LEAST
from robustgen.metrics.rows import Rows, Run
from robustgen.types import Flag

DEPENDENT = {
    "letters": "letters are the same few shapes in ten fonts",
    "photos": "photos are half-overlapping windows of two photographs",
    "interpolated": "each is the mean of two of the own pictures that it is compared with",
    "turned": "they are the own pictures that they are compared with, turned",
    "inverted": "they are the own pictures that they are compared with, as negatives",
}


def ood_doubts(run: Run) -> Iterator[Flag]:
    """The flags of a run's foreign pictures."""
    for evaluation, rows in run.of_kind("ood"):
        why = DEPENDENT.get(evaluation.detail["data"])
        if why:
            yield Flag(
                run.model, evaluation.name, "dependent_samples", "info",
                f"Foreign pictures that are not independent make intervals too narrow: {why}.",
            )  # fmt: skip
        if len(rows) < LEAST:
            yield Flag(
                run.model, evaluation.name, "too_few_foreign", "warning",
                f"{len(rows)} foreign pictures: nothing is said of them, since 95 % of fewer than {LEAST} is "
                "all of them. Take a larger set.",
            )  # fmt: skip
        yield from _no_numbers(run.model, evaluation.name, rows)
    for evaluation, rows in run.of_kind("clean"):
        yield from _no_numbers(run.model, evaluation.name, rows)
    yield from _detectors(run)


def _no_numbers(model: str, evaluation: str, rows: Rows) -> Iterator[Flag]:
    """Stored scores that are no number for some pictures, of which ``ood.scores`` takes none."""
    lacking = {name: int((~np.isfinite(v)).sum()) for name, v in rows.scores.items()}
    lacking = {name: count for name, count in lacking.items() if count}
    if lacking:
        counted = ", ".join(f"{name} ({count} of {len(rows)})" for name, count in lacking.items())
        yield Flag(
            model, evaluation, "scores_not_finite", "warning",
            f"Scores that are infinite or no number for some pictures: {counted}. Nothing is said of them; "
            "look for a division by 0, or a root of 0, in the model or its features.",
        )  # fmt: skip


def _detectors(run: Run) -> Iterator[Flag]:
    """Detectors that were asked for and that the rows lack, once a run."""
    for evaluation, rows in run.of_kind("clean"):
        lacking = [name for name in evaluation.detail.get("detectors", []) if name not in rows.scores]
        if lacking:
            yield Flag(
                run.model, evaluation.name, "detectors_left_out", "info",
                f"Detectors left out: {', '.join(lacking)}. They need features, the input of the model's "
                "last linear layer (some of them, that its output is the logits), and training pictures of "
                "every class that the model gets right. Name others in the protocol.",
            )  # fmt: skip
