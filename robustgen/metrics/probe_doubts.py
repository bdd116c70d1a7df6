"""Flags about a model's gradients, from the table of its probes (attacks/probes.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from robustgen.metrics.rows import Run
from robustgen.types import Flag

ZERO_SHARE = 0.01  # of the samples that are classified correctly
# Shares of a slope, and of the samples. Sound networks differ by 0.0005 on digits, by up to 0.07 on CIFAR-10.
WRONG, WRONG_SHARE = 0.1, 0.05
ASCENDS = 0.75  # share of samples where a step of eps along the gradient must raise the loss; chance: 0.5
EXPLODED = 1000.0  # times the spread of the logits; undefended networks reach 4
SATURATED = 80.0  # nats; exp(-80) is near the end of float32's range, and its product with a slope beyond it


def probe_doubts(run: Run) -> Iterator[Flag]:
    """The flags of the probes at the samples that are classified correctly.

    Slopes are judged only where two calls of the model agree, since otherwise they cannot be measured.
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
            f"The gradient of the logits is exactly 0 at {margin} of {n} pictures: no gradient attack can "
            "move there. Look for rounding or detach() in the model; use square, or joint-adaptive, which "
            "estimates gradients from the logits."
        )
    ce = int((table["ce_gradient_zero"] == 1).sum())
    if ce > ZERO_SHARE * n:
        return (
            f"The cross-entropy's gradient is exactly 0 at {ce} of {n} pictures, while that of the logits "
            "is not: an attack on the cross-entropy cannot move there. Use an attack on the log-odds, the "
            "margin or DLR instead, such as robustgen's pgd, apgd-ce and apgd-t."
        )
    return None


def _scaled(table: pd.DataFrame) -> str | None:
    saturated = int((table["gap"] > SATURATED).sum())
    if saturated <= ZERO_SHARE * len(table):
        return None
    return (
        f"The label's logit exceeds all others by more than {SATURATED:g} at {saturated} of {len(table)} "
        f"pictures, by up to {table['gap'].max():.3g}: the softmax is saturated and the cross-entropy's "
        "gradient underflows. Divide the logits by a temperature, which changes no decision, or attack the "
        "margin."
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
        f"At {large} of {len(table)} pictures the gradient is so large that a step of eps would change the "
        f"logits by more than {EXPLODED:g} times their spread: the gradients explode. Use estimated "
        "gradients (joint-adaptive) or none (square)."
    )


def _inconsistent(table: pd.DataFrame) -> str | None:
    known = table[(table["repeat_difference"] == 0) & (table["margin_gradient_zero"] < 1)]
    if not len(known):
        return None
    wrong = int((~(known["slope_error"] <= WRONG)).sum())
    if wrong > WRONG_SHARE * len(known):
        return (
            f"At {wrong} of {len(known)} pictures the gradient differs from finite differences of the "
            f"logits by more than {WRONG:.0%} (median {known['slope_error'].median():.2g}). The backward "
            "pass is rounded, replaced or broken: use joint-adaptive, which estimates gradients from the "
            "logits, and square, which needs none."
        )
    leads = int((known["observed"] > 0).sum())
    if leads < ASCENDS * len(known):
        return (
            "The gradient matches finite differences, but a step of eps along it raises the loss at only "
            f"{leads} of {len(known)} pictures: the gradients are shattered. Use gradients averaged over "
            "noise (joint-adaptive), and square."
        )
    return None


def _random(table: pd.DataFrame) -> str | None:
    differing = int((table["repeat_difference"] > 0).sum())
    if not differing:
        return None
    return (
        f"Two calls of the model gave different logits at {differing} of {len(table)} pictures, by up to "
        f"{table['repeat_difference'].max():.3g}, although they agreed on the first batch. "
        "Declare stochastic = True and define reseed(seed): then the verdict is taken over many draws."
    )
