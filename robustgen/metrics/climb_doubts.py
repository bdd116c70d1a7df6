"""Doubts about what an attack meets on its way, from the table of climbs (attacks/climbs.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from robustgen.metrics.rows import Run
from robustgen.types import Flag

ZERO_SHARE = 0.01  # of the samples that are right
EXPLODED = 500.0  # times the spread of the logits; undefended nets promise up to 2
# Of the rise, and of the samples. Honest nets of digits fall by less than 0.05 of it, and two starts
# differ on 4 % of them at most; a sine of the logits falls so on 27 %, and differs on 19 %.
FALLS, FALLS_SHARE, SEED_SHARE = 0.2, 0.1, 0.1
LEAST = 2  # samples: of a few, one is not enough


def climb_doubts(run: Run) -> Iterator[Flag]:
    """The flags of the climbs at the samples that are right."""
    for evaluation, climbs in run.tables_where_right("climbs"):
        found = {
            "zero_gradients": _zero(climbs),
            "exploding_gradients": _exploding(climbs),
            "loss_not_monotone": _not_monotone(climbs),
            "seed_dependent": _by_seed(climbs),
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
        f"APGD's way up meets points where the {which} exactly 0, on {met} of {len(climbs)} "
        "pictures: an attack stands still there. "
        "Attack with joint-adaptive, which estimates gradients from the logits, and with square."
    )


def _exploding(climbs: pd.DataFrame) -> str | None:
    large = int((~(climbs["promised"] <= EXPLODED)).sum())
    if large < LEAST:
        return None
    return (
        f"On {large} of {len(climbs)} pictures APGD's way up meets a gradient that is NaN or promises over a "
        f"step of eps more than {EXPLODED:g} times the spread of all logits: its length says nothing. "
        "Attack with estimated gradients (joint-adaptive) or without any (square)."
    )


def _not_monotone(climbs: pd.DataFrame) -> str | None:
    rise = climbs["rise"]
    falls = int((climbs["fall"] > FALLS * rise).sum())
    if falls < max(LEAST, FALLS_SHARE * len(climbs)):
        return None
    return (
        f"On {falls} of {len(climbs)} pictures the loss at the end of APGD's steps is lower than it was at a "
        f"checkpoint before, by more than {FALLS:.0%} of its rise: more steps do not attack better here. "
        "Its gradients mislead: attack with joint-adaptive and square, and take more restarts."
    )


def _by_seed(climbs: pd.DataFrame) -> str | None:
    broken, again = climbs["broken"], climbs["broken_again"]
    differ = int((broken != again).sum())
    if differ < max(LEAST, SEED_SHARE * len(climbs)):
        return None
    return (
        f"Of {len(climbs)} pictures, APGD from one random start breaks {int(broken.sum())}, from another "
        f"{int(again.sum())}, and only one of them {differ}: the verdict hangs on the seed. "
        "Take more restarts, and read robust accuracy as an upper bound."
    )
