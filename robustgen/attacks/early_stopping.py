"""Searches that cannot arrive any more end early: most of AutoAttack's questions are theirs.

On a robust model hardly any job of APGD-T, FAB-T or Square succeeds, and those that do come near
soon. So a job is looked at after 1/16, 1/8, 1/4 and 1/2 of its steps. It goes on where, at the rate
since the look before, it would arrive by its end, and where it lacks less than a fifth of what it
lacked at first. What the best point lacks falls ever slower, as a rule, so going on at one rate is
more than can be hoped for; whether that holds, the audit of a cascade measures. docs/attacks.md
says what the rule was fixed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robustgen.attacks.search import State

FIRST_LOOK = 1 / 16  # of a job's steps; each look comes at twice the steps of the one before
NEAR = 0.2  # of what a job lacked at first; one that lacks less goes on


def stop_early(state: State, lacking: Tensor, length: int) -> None:
    """Set ``over`` for the rows whose jobs, of ``length`` steps, will not arrive. ``lacking`` (rows,):
    how far the best point of the job is from success, in any unit; inf where that is not known yet."""
    at_first = torch.where(state.at_first.isinf() & lacking.isfinite(), lacking, state.at_first)
    look = state.step >= torch.where(state.looked == 0, FIRST_LOOK * length, 2 * state.looked)
    rate = (state.lacked - lacking) / (state.step - state.looked)
    arrives = rate * (length - state.step) >= lacking  # false of inf - inf: nothing is known after two looks
    far = lacking.isinf() | (lacking > NEAR * at_first)
    state.over = state.over | (look & (state.looked > 0) & far & ~arrives)
    state.at_first = at_first
    state.lacked = torch.where(look, lacking, state.lacked)
    state.looked = torch.where(look, state.step, state.looked)
