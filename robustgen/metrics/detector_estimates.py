"""The accuracy that a detector guards, also against an attack that knows of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from robustgen.metrics.estimate import Estimate, rate
from robustgen.metrics.rows import Evaluation, Rows, Run, aligned
from robustgen.types import ADDED

Array = np.ndarray
UNAWARE = "unaware"


def detector_estimates(run: Run) -> Iterator[Estimate]:
    """``guarded_accuracy``: the share of samples that are accepted and correct on the clean picture, and for
    which no perturbed picture was found that is accepted and wrong.

    Variant ``clean``: without attack; ``unaware``: under the attacks on the model alone of this norm up to
    this eps; "": under these and the attack that knows of the detector.
    """
    clean = run.first("clean")
    for evaluation, rows in run.of_kind("detected"):
        if clean is None or "threshold" not in rows.scores:  # the model lacks the detector's score
            continue
        score, threshold = str(evaluation.detail["score"]), float(rows.scores["threshold"][0])
        unaware = [r for e, r in run.of_kind("attack") if _comparable(e, evaluation)]
        before, aware, *unaware = aligned(clean, rows, *unaware)
        if not len(before):
            continue
        stands = before.correct & (judged_by(score, before) >= threshold)
        yield rate(run, evaluation.name, "clean", "guarded_accuracy", before.ids, stands)
        for one in unaware:
            stands = stands & (one.correct | ~(judged_by(score, one) >= threshold))
        if unaware:
            yield rate(run, evaluation.name, UNAWARE, "guarded_accuracy", before.ids, stands)
        stands = stands & (aware.correct | ~(aware.scores["judged"] >= threshold))
        yield rate(run, evaluation.name, "", "guarded_accuracy", before.ids, stands)


def _comparable(attack: Evaluation, detected: Evaluation) -> bool:
    own, other = attack.detail, detected.detail
    return bool(ADDED not in own and own["norm"] == other["norm"] and own["eps"] <= other["eps"])


def judged_by(score: str, rows: Rows) -> Array:
    """The detector's score of stored rows, (n,), equal to that of attacks/detector.py on the pictures."""
    if score == "log_prob":
        return rows.log_prob
    ordered = np.sort(rows.logits, 1)
    others = np.exp(ordered[:, :-1] - ordered[:, -1:]).sum(1)
    return -np.log1p(others).astype(np.float32)
