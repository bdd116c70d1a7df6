"""Flags about the points that APGD passes through, from the table of climbs (attacks/climbs.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from robustgen.metrics.rows import Run
from robustgen.types import Flag

ZERO_SHARE = 0.01  # of the samples that are classified correctly
EXPLODED = 500.0  # times the spread of the logits; undefended networks reach 2
# Shares of the rise, and of the samples. Sound networks on digits fall by less than 0.05 of the rise, and two
# starts differ on at most 4 % of the samples; a sine of the logits falls on 27 % and differs on 19 %.
FALLS, FALLS_SHARE, SEED_SHARE = 0.2, 0.1, 0.1
LEAST = 2  # samples: one alone raises no flag


def climb_doubts(run: Run) -> Iterator[Flag]:
    """The flags of the climbs from the samples that are classified correctly."""
    for evaluation, climbs in run.tables_where_right("climbs"):
        found = {
            "zero_gradients": _zero(climbs),
            "exploding_gradients": _exploding(climbs),
            "loss_not_monotone": _not_monotone(climbs),
            "seed_dependent": _seed_dependent(climbs),
        }
        for flag, message in found.items():
            if message:
                yield Flag(run.model, evaluation, flag, "warning", message)


def _zero(climbs: pd.DataFrame) -> str | None:
    zero, ce = (int((climbs[f"{name}_zero"] == 1).sum()) for name in ("gradient", "ce_gradient"))
    if max(zero, ce) <= ZERO_SHARE * len(climbs):
        return None
    of_all = zero > ZERO_SHARE * len(climbs)
    which, met = ("gradient is", zero) if of_all else ("cross-entropy's gradient is", ce)
    return (
        f"APGD reaches points where the {which} exactly 0, on {met} of {len(climbs)} pictures: an attack "
        "cannot move from there. "
        "Use joint-adaptive, which estimates gradients from the logits, and square, which needs none."
    )


def _exploding(climbs: pd.DataFrame) -> str | None:
    large = int((~(climbs["promised"] <= EXPLODED)).sum())
    if large < LEAST:
        return None
    return (
        f"On {large} of {len(climbs)} pictures APGD reaches a gradient that is NaN, or so large that a step "
        f"of eps would change the loss by more than {EXPLODED:g} times the spread of all logits: the "
        "gradients explode. Use estimated gradients (joint-adaptive) or none (square)."
    )


def _not_monotone(climbs: pd.DataFrame) -> str | None:
    rise = climbs["rise"]
    falls = int((climbs["fall"] > FALLS * rise).sum())
    if falls < max(LEAST, FALLS_SHARE * len(climbs)):
        return None
    return (
        f"On {falls} of {len(climbs)} pictures APGD's loss ends lower than at an earlier checkpoint, by more "
        f"than {FALLS:.0%} of its rise: more steps do not make the attack stronger here. "
        "The gradients mislead it: use joint-adaptive and square, and more restarts."
    )


def _seed_dependent(climbs: pd.DataFrame) -> str | None:
    broken, again = climbs["broken"], climbs["broken_again"]
    differ = int((broken != again).sum())
    if differ < max(LEAST, SEED_SHARE * len(climbs)):
        return None
    return (
        f"Of {len(climbs)} pictures APGD breaks {int(broken.sum())} from one random start and "
        f"{int(again.sum())} from another, and {differ} from only one of the two: the result depends on the "
        "seed. Use more restarts, and read the robust accuracy as an upper bound."
    )
