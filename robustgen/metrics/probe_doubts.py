"""Doubts about a model's gradients, from the table of its probes (attacks/probes.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from robustgen.metrics.rows import Run
from robustgen.types import Flag

ZERO_SHARE = 0.01  # of the samples that are right
# Of a slope, and of the samples. Honest nets differ by 0.0005 on digits, by up to 0.07 on CIFAR-10.
WRONG, WRONG_SHARE = 0.1, 0.05
LEADS = 0.75  # of the samples, a step of eps along the gradient leads up; 0.5 is what a coin gives
EXPLODED = 1000.0  # times the spread of the logits; undefended nets promise up to 4
SATURATED = 80.0  # nats; exp(-80) is near the end of float32's range, and times a slope beyond it


def probe_doubts(run: Run) -> Iterator[Flag]:
    """The flags of what was probed at the samples that are right.

    A sample whose two calls differ has no slope that could be measured, so its slopes are not judged.
    """
    for evaluation, table in run.tables_where_right("probes"):
        found = {
            "zero_gradients": _zero(table),
            "scaled_logits": _scaled(table),
            "exploding_gradients": _exploding(table),
            "inconsistent_gradients": _inconsistent(table),
            "random_forward": None if run.spec["model"]["stochastic"] else _random(table),
        }
        for flag, message in found.items():
            if message:
                yield Flag(run.model, evaluation, flag, "warning", message)


def _zero(table: pd.DataFrame) -> str | None:
    n = len(table)
    margin = int((table["margin_gradient_zero"] == 1).sum())
    if margin > ZERO_SHARE * n:
        return (
            f"The gradient of the logits is exactly 0 at {margin} of {n} pictures: no attack by gradients "
            "can move there. Look for rounding or detach() in the model; attack with square, or with "
            "joint-adaptive, which estimates gradients from the logits."
        )
    ce = int((table["ce_gradient_zero"] == 1).sum())
    if ce > ZERO_SHARE * n:
        return (
            f"The cross-entropy's gradient is exactly 0 at {ce} of {n} pictures, that of the logits is not: "
            "an attack on the cross-entropy cannot move there. Attack on the log-odds, the margin or DLR "
            "instead, as our pgd, apgd-ce and apgd-t do."
        )
    return None


def _scaled(table: pd.DataFrame) -> str | None:
    saturated = int((table["gap"] > SATURATED).sum())
    if saturated <= ZERO_SHARE * len(table):
        return None
    return (
        f"The label leads by more than {SATURATED:g} nats at {saturated} of {len(table)} pictures, by up to "
        f"{table['gap'].max():.3g}: the softmax is saturated and the cross-entropy's gradient underflows. "
        "Divide the logits by a temperature, which changes no decision, or attack on the margin."
    )


def _exploding(table: pd.DataFrame) -> str | None:
    norms = table[["ce_gradient_norm", "margin_gradient_norm"]]
    infinite = int((~np.isfinite(norms)).any(axis=1).sum())
    if infinite:
        return (
            f"The gradient has NaN or infinite entries at {infinite} of {len(table)} pictures. "
            "Look for sqrt(0), log(0) or a division by zero in the model."
        )
    large = int((table["promised"] > EXPLODED * table["spread"]).sum())
    if large <= ZERO_SHARE * len(table):
        return None
    return (
        f"At {large} of {len(table)} pictures the gradient promises over a step of eps more than "
        f"{EXPLODED:g} times the spread of all logits: its length says nothing. "
        "Attack with estimated gradients (joint-adaptive) or without any (square)."
    )


def _inconsistent(table: pd.DataFrame) -> str | None:
    known = table[(table["repeat_difference"] == 0) & (table["margin_gradient_zero"] < 1)]
    if not len(known):
        return None
    wrong = int((~(known["slope_error"] <= WRONG)).sum())
    if wrong > WRONG_SHARE * len(known):
        return (
            f"At {wrong} of {len(known)} pictures the gradient is not the slope of the logits: it differs "
            f"from finite differences by more than {WRONG:.0%} (median {known['slope_error'].median():.2g}). "
            "The backward pass is rounded, replaced or broken: attack with joint-adaptive, which estimates "
            "gradients from the logits, and with square."
        )
    leads = int((known["observed"] > 0).sum())
    if leads < LEADS * len(known):
        return (
            f"The gradient is right from near, but over a step of eps it leads up at {leads} of {len(known)} "
            "pictures only: the logits are shattered. Attack with gradients averaged over noise "
            "(joint-adaptive), and with square."
        )
    return None


def _random(table: pd.DataFrame) -> str | None:
    differing = int((table["repeat_difference"] > 0).sum())
    if not differing:
        return None
    return (
        f"Two calls gave other logits at {differing} of {len(table)} pictures, by up to "
        f"{table['repeat_difference'].max():.3g}, though the first batch had shown nothing. "
        "Declare stochastic = True and reseed(seed): then the model is judged by many draws."
    )
