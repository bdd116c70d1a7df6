"""Doubts about foreign pictures: sets too small or not independent, detectors that a model cannot have."""

from __future__ import annotations

from collections.abc import Iterator

from robustgen.metrics.foreign import LEAST
from robustgen.metrics.rows import Run
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
    yield from _detectors(run)


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
