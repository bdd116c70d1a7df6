"""The audit of a cascade that saves work: which survivors it attacks again in full, to see what was missed.

The attack makes the audit and the flags of a report count it, so both read its rules here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

AUDIT = "audit"
"""The entry in ``broken_by`` of a sample that only the audit broke."""
TARGETED_STAGES = ("apgd-t", "fab-t", "apgd-margin-t")
"""Stages that aim at one class after another."""


def is_repeated(stage: str, *, early: bool) -> bool:
    """Whether the audit repeats a stage: every stage where jobs may have ended ``early``; TARGETED_STAGES
    where work was saved by bfloat16 gradients alone."""
    return early or stage in TARGETED_STAGES


def audited_indices(survivors: int) -> list[int]:
    """Which of a batch's survivors are audited: every 8th, and at least 4."""
    count = min(survivors, max(4, math.ceil(survivors / 8)))
    return [i * survivors // count for i in range(count)]


def audited_ids(survivors: np.ndarray, chunks: Iterable[tuple[int, int]]) -> np.ndarray:
    """Which of a run's survivors (ascending sample ids) were audited, given its chunks (start, stop)."""
    found, reached = [survivors[:0]], 0
    for start, stop in sorted(chunks):
        here = survivors[(survivors >= start) & (survivors < stop)]
        ids = here[audited_indices(len(here))]
        found.append(ids[ids >= reached])  # a sample in two chunks belongs to the first
        reached = max(reached, stop)
    return np.concatenate(found)
