"""The audit of a cascade that saves work: which samples are attacked once more, in full.

The attack that makes it and the flag that counts it both need to know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

AUDIT = "audit"
"""What ``broken_by`` says of a sample that only the audit broke."""
TARGETED_STAGES = ("apgd-t", "fab-t", "apgd-margin-t")
"""Stages that aim at one class after another."""


def repeats(stage: str, *, early: bool) -> bool:
    """Whether an audit repeats a stage: where jobs may have been ended ``early``, every one; where gradients
    alone were low, those that are TARGETED_STAGES."""
    return early or stage in TARGETED_STAGES


def audited(survivors: int) -> list[int]:
    """Which of a batch's survivors are audited: every 8th, and 4 at least."""
    count = min(survivors, max(4, math.ceil(survivors / 8)))
    return [i * survivors // count for i in range(count)]


def audited_ids(survivors: np.ndarray, chunks: Iterable[tuple[int, int]]) -> np.ndarray:
    """Which of a run's survivors, ids in order, are audited, where it was computed in these chunks."""
    found, reached = [survivors[:0]], 0
    for start, stop in sorted(chunks):
        here = survivors[(survivors >= start) & (survivors < stop)]
        ids = here[audited(len(here))]
        found.append(ids[ids >= reached])  # a sample that two chunks have is the first one's
        reached = max(reached, stop)
    return np.concatenate(found)
