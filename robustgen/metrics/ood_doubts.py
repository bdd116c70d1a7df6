"""Flags about foreign pictures: sets that are too small or not independent, scores that are missing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robustgen.metrics.ood_estimates import LEAST
from robustgen.metrics.rows import Rows, Run
from robustgen.types import Flag

DEPENDENT = {
    "letters": "letters are the same few shapes in ten fonts",
    "photos": "photos are half-overlapping windows of two photographs",
    "interpolated": "each is the mean of two of the test pictures that it is compared with",
    "turned": "they are the test pictures that they are compared with, rotated",
    "inverted": "they are the test pictures that they are compared with, inverted",
}


def ood_doubts(run: Run) -> Iterator[Flag]:
    """The flags of a run's foreign pictures."""
    for evaluation, rows in run.of_kind("ood"):
        why = DEPENDENT.get(evaluation.detail["data"])
        if why:
            yield Flag(
                run.model, evaluation.name, "dependent_samples", "info",
                f"These foreign pictures are not independent, which makes intervals too narrow: {why}.",
            )  # fmt: skip
        if len(rows) < LEAST:
            yield Flag(
                run.model, evaluation.name, "too_few_foreign", "warning",
                f"{len(rows)} foreign pictures are too few for OOD metrics: at least {LEAST} are needed for "
                "rates at 95 %. Use a larger set.",
            )  # fmt: skip
        yield from _not_finite(run.model, evaluation.name, rows)
    for evaluation, rows in run.of_kind("clean"):
        yield from _not_finite(run.model, evaluation.name, rows)
    yield from _detectors(run)


def _not_finite(model: str, evaluation: str, rows: Rows) -> Iterator[Flag]:
    """Stored scores that are not finite for some pictures, which ``ood.scores`` leaves out."""
    lacking = {name: int((~np.isfinite(v)).sum()) for name, v in rows.scores.items()}
    lacking = {name: count for name, count in lacking.items() if count}
    if lacking:
        counted = ", ".join(f"{name} ({count} of {len(rows)})" for name, count in lacking.items())
        yield Flag(
            model, evaluation, "scores_not_finite", "warning",
            f"Scores that are infinite or NaN for some pictures are left out: {counted}. "
            "Look for a division by 0, or a root of 0, in the model or its features.",
        )  # fmt: skip


def _detectors(run: Run) -> Iterator[Flag]:
    """Detectors of the protocol that the rows lack."""
    for evaluation, rows in run.of_kind("clean"):
        lacking = [name for name in evaluation.detail.get("detectors", []) if name not in rows.scores]
        if lacking:
            yield Flag(
                run.model, evaluation.name, "detectors_left_out", "info",
                f"Detectors left out: {', '.join(lacking)}. They need the features before the model's last "
                "linear layer (for some its output must be the logits), and training pictures of every class "
                "that the model classifies correctly. Choose other detectors in the protocol.",
            )  # fmt: skip
